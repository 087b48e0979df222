"""What contract tests need to know of a part beside what its protocol says: one fixture file for each part."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffdpo.models.base import SongModel
from diffdpo.types import Prompt

TESTS = Path(__file__).parents[1]
MODEL_FIXTURES = TESTS / "contract" / "models"
STRANGER = TESTS / "support" / "stranger"
"""A distribution outside the package, as pip would install it."""


@dataclass(frozen=True, kw_only=True)
class ModelFixture:
    """A song model as the contract tests want it: `FIXTURE` in tests/contract/models/NAME.py."""

    load: Callable[..., SongModel]
    """load(folder, network="", adapter=""): the real classes, small, with random weights that are written to the
    folder unless they are there; `network` and `adapter` are the arguments of that name in a configuration. No
    weight may be zero that a part of the condition passes through."""
    prompts: tuple[Prompt, Prompt, Prompt]
    """They differ, each has every part of the condition, and together they use every control."""
    on_frames: tuple[str, ...] = ()
    """Tensors of a condition with a frame axis behind the rows: of a window, the slice of the whole song's."""
    takes_windows: bool = True
    """Rows may be windows of songs; refused in one line by a model that knows whole songs only."""
    posterior: bool = True
    """The codec's latents are random variables, so that `encode` with a generator samples them."""


def model_fixture(name: str) -> ModelFixture:
    """The fixture of a registered model; without one the test fails and says what is to be written."""
    path = MODEL_FIXTURES / f"{name}.py"
    if not path.is_file():
        pytest.fail(
            f"the model {name!r} is registered and has no fixture: write {path.relative_to(TESTS.parent)} with "
            "FIXTURE = ModelFixture(load=…, prompts=…), see tests/support/contract.py",
            pytrace=False,
        )
    spec = importlib.util.spec_from_file_location(f"contract_model_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fixture: ModelFixture = module.FIXTURE
    return fixture


@contextmanager
def on_path(distribution: Path) -> Iterator[None]:
    """A folder of distributions where Python looks for installed ones."""
    sys.path.insert(0, str(distribution))
    try:
        yield
    finally:
        sys.path.remove(str(distribution))
