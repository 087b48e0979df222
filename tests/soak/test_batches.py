"""Songs of random lengths in batches of random sizes, by every solver: each is the song that it is alone."""

import pytest
import torch
from support.rows import song_row

from diffdpo.models import MODELS
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import Request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.sampling.solver import SOLVERS
from diffdpo.types import Prompt

BATCHES = 6
"""Of each solver."""


@pytest.fixture(scope="module")
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_song_is_that_of_any_batch(model, solver, guidance_scale):
    cfg = SamplingConfig(steps=4, solver=Choice(solver), guidance_scale=guidance_scale)
    generator = torch.Generator().manual_seed(0)
    for number in range(BATCHES):
        seconds = (0.4 + 3.6 * torch.rand(2 + number, generator=generator)).tolist()
        requests = [
            Request(
                sample_id=f"{number}.{i}",
                row=song_row(model, Prompt(id="p", text="rock" if i % 2 else "jazz", duration_s=length)),
            )
            for i, length in enumerate(seconds)
        ]
        songs = sample_batch(model, requests, cfg, seed=number)
        for request, song in zip(requests, songs, strict=True):
            (alone,) = sample_batch(model, [request], cfg, seed=number)
            assert torch.allclose(song, alone, rtol=1e-4, atol=1e-4), request.sample_id
