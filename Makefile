# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One small scorer's weights come from a package whose declared dependencies cannot be satisfied any more.
MUSICNN := --no-deps musicnn==0.1.0

.PHONY: demo test check lint types unit e2e browser docs gpu-check clean

demo: $(VENV)/.runtime
	$(BIN)/diffdpo demo configs/tiny/demo.yaml

test: check e2e

check: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit tests/contract tests/golden tests/test_house.py tests/test_docs.py

e2e: $(VENV)/.dev
	$(BIN)/python -m pytest tests/e2e

docs: $(VENV)/.dev
	$(BIN)/python tools/config_reference.py

gpu-check: $(VENV)/.dev
	$(BIN)/python tools/gpu_check.py

$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=24"
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) $(MUSICNN)
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
