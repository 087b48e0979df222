"""The shipped model keeps the tempo that a prompt names: heard in its songs, not read from its tokens."""

import numpy as np
import pytest
from support.rows import song_row

from diffdpo.encoders.descriptors import measure
from diffdpo.models import MODELS
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import Request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.scorers.rhythm import Rhythm
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

CONFIG = SamplingConfig(steps=6)
SONGS = 6


@pytest.fixture(scope="module")
def model():
    return MODELS["tiny"]().load()


def songs(model, text):
    row = song_row(model, Prompt(id="a", text=text, duration_s=12.0))
    requests = [Request(sample_id=f"a.{number}", row=row) for number in range(SONGS)]
    return [model.decode(latents) for latents in sample_batch(model, requests, CONFIG, seed=0)]


@pytest.mark.parametrize("bpm", [100, 150])
def test_songs_have_the_tempo_that_their_prompt_names(model, bpm):
    clips = songs(model, f"electronic rock, {bpm} bpm")
    off = [abs(np.log2(measure(clip)["tempo_bpm"] / bpm)) for clip in clips]
    assert np.median(off) < 0.07  # a twentieth; librosa tells tempos this far apart
    assert Rhythm()(clips)[:, 0].mean() > 0.45  # noise has 0.2
