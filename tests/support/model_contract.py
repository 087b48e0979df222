"""What contract tests need to know of a part beside what its protocol says: one fixture file for each part."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models.base import Plans, SongModel, supports
from diffdpo.types import Clip, Prompt, Row

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
            "FIXTURE = ModelFixture(load=…, prompts=…), see tests/support/model_contract.py",
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


FRAMES = (40, 23, 9)
LENGTH = max(FRAMES)


class Inputs(NamedTuple):
    """What `velocity` takes behind the network."""

    x: torch.Tensor
    t: torch.Tensor
    condition: dict[str, torch.Tensor]
    frames: torch.Tensor


@dataclass(frozen=True)
class Subject:
    """A model under test."""

    name: str
    fixture: ModelFixture
    folder: Path
    model: SongModel

    def load(self, **arguments: str) -> SongModel:
        return self.fixture.load(self.folder, **arguments)

    def embed(self, number: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Of a prompt, with a plan where the model plans."""
        model, prompt = self.model, self.fixture.prompts[number]
        embedding = model.embed(prompt)
        if supports(model, Plans):
            plan = model.plan(prompt, FRAMES[number], torch.Generator().manual_seed(seed))
            embedding = embedding | model.embed_plan(plan)
        return embedding

    def rows(self) -> list[Row]:
        return [Row(embedding=self.embed(i), frames=frames) for i, frames in enumerate(FRAMES)]

    def inputs(self) -> Inputs:
        """Three songs in one batch, NaN behind the end of each."""
        frames = torch.tensor(FRAMES)
        x = draw(3, LENGTH, self.model.spec.channels)
        x = x.where(mask_from_frames(frames, LENGTH)[..., None], torch.nan)
        return Inputs(x, torch.tensor([0.3, 0.8, 0.55]), self.model.condition(self.rows(), LENGTH), frames)

    @torch.no_grad()
    def velocity(self, inputs: Inputs, network=None) -> torch.Tensor:
        return self.model.velocity(self.model.network if network is None else network, *inputs)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(seconds, rate, channels=1, seed=0):
    samples = np.random.default_rng(seed).normal(0, 0.1, (channels, int(seconds * rate))).astype(np.float32)
    return Clip(samples=samples, sample_rate=rate)


def distance(value, reference):
    """The largest absolute difference from a reference, relative to its largest element."""
    return float((value - reference).abs().max() / reference.abs().max())


@contextmanager
def one_line_error(match="", kind=DataError):
    with pytest.raises(kind, match=match) as error:
        yield
    assert "\n" not in str(error.value)
