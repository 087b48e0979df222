# Each target sets up what it needs in .venv first; nothing else has to be installed by hand.
#
#   make demo       the whole loop on the tiny model: samples, scores, mines, aligns, evaluates
#   make test       everything that has to pass: lint, types, unit, slow and pages
#   make check      lint, types and unit: what to run on every save
#   make lint       ruff, and that layers point downwards
#   make types      mypy, of the package and of tools
#   make unit       unit, contract, golden and house tests, docs; JOBS=2 processes of one thread
#   make slow       what takes seconds a test: real launches, trainings, the wheel, examples of the docs;
#                   SHAPES=1 checks shapes of all calls there, too: nearly twice the time
#   make pages      the tests that need Chromium; they are skipped without it
#   make browser    the same; they fail without it
#   make soak       what is true only by the hundred: kills, matrices, coverage; writes docs/reference/soak.md
#   make docs       the reference from the dataclasses, then the site, into site/
#   make gpu-check  what only a GPU can show
#   make clean      removes .venv, the site and caches

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
SHAPES ?= 0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One small scorer's weights come from a package whose declared dependencies cannot be satisfied any more.
MUSICNN := --no-deps musicnn==0.1.0

.PHONY: demo test check lint types unit slow pages browser soak docs gpu-check clean
.NOTPARALLEL:
# Tests start hundreds of processes, and what Python compiles for one serves all.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/soak -n $(JOBS) --dist loadfile --no-loadscope-reorder

demo: $(VENV)/.runtime
	$(BIN)/diffdpo demo

test: lint types unit slow pages

check: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(PYTEST) -m "not slow and not browser"

slow: $(VENV)/.dev
	DIFFDPO_SHAPES=$(SHAPES) $(PYTEST) -m "slow and not browser"

pages: $(VENV)/.dev
	$(BIN)/python -m pytest tests/e2e -m browser

browser: $(VENV)/.dev
	DIFFDPO_REQUIRE_BROWSER=1 $(BIN)/python -m pytest tests/e2e -m browser

soak: $(VENV)/.dev
	$(BIN)/python -m pytest tests/soak --soak-table docs/reference/soak.md

docs: $(VENV)/.dev
	$(BIN)/python tools/config_reference.py
	$(BIN)/python tools/table_reference.py
	$(BIN)/mkdocs build --strict

gpu-check: $(VENV)/.dev
	$(BIN)/diffdpo gpu-check

# $(call install,WHAT): a virtual environment with WHAT in it, and how long that took.
define install
	@start=$$(date +%s); set -ex; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(PIP) --upgrade "pip>=24"; \
	$(PIP) --constraint constraints.txt --editable "$(1)"; \
	$(PIP) $(MUSICNN); \
	set +x; echo "installed in $$(($$(date +%s) - start)) s"
endef

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
