"""Styles of a song's stretches: what is embedded, and that captions say parts of what is true."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundle import write_bundle

from diffdpo.config import PrepareRun
from diffdpo.encoders.descriptors import THIRDS, measure, measured_words
from diffdpo.models import MODELS
from diffdpo.recipes.prepare import Song, style_windows
from diffdpo.types import Clip, Prompt

SONG = Song(id="one", audio=Path("one.wav"), text="rock, ambient")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return MODELS["tiny"](bundle=str(write_bundle(tmp_path_factory.mktemp("bundle")))).load()


@pytest.fixture(scope="module")
def clip():
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 4 * 44100)).astype(np.float32)
    return Clip(samples=samples, sample_rate=44100)


def test_without_captions_a_stretch_has_styles_of_both_of_sound_and_of_text(model, clip):
    styles = style_windows(model, clip, SONG, PrepareRun(style_window_s=2.0))
    assert styles.shape == (3, 2, 16)
    text = model.embed(Prompt(id="t", text=SONG.text)).style
    assert torch.equal(styles[2], torch.stack([text, text]))
    unsaid = style_windows(model, clip, replace(SONG, text=""), PrepareRun(style_window_s=2.0))
    assert torch.equal(unsaid, styles[1].expand(3, -1, -1))


def test_captions_say_parts_of_the_text_and_of_what_is_measured(model, clip):
    cfg = PrepareRun(style_window_s=4.0, captions=6)
    styles = style_windows(model, clip, SONG, cfg)
    assert styles.shape == (8, 1, 16)
    assert torch.equal(styles, style_windows(model, clip, SONG, cfg))
    parts = ["rock", "ambient", *measured_words(measure(clip), THIRDS)]
    assert "bright" in parts  # white noise
    subsets = [said for n in range(1, len(parts) + 1) for said in combinations(parts, n)]
    meant = torch.stack([model.embed(Prompt(id="x", text=", ".join(said))).style for said in subsets])
    distance = (styles[2:, :1] - meant).norm(dim=-1)  # the order of the parts is no matter to the style
    assert distance.min(1).values.max() < 1e-5
    said = [subsets[i] for i in distance.argmin(1)]
    assert len(set(said)) > 2
    assert {part for parts_said in said for part in parts_said} > {"bright"}
