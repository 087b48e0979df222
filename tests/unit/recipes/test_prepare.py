"""Styles of a song's stretches: what is embedded, and that captions say parts of what is true."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundle import write_bundle

from diffdpo.config import PrepareRun
from diffdpo.encoders.words import THIRDS, directions, measure, measured_words
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
    known = torch.stack([directions([part], 16) for part in parts if part in model.style.known])
    said = torch.linalg.lstsq(known.T, styles[2:, 0].T).solution.T
    torch.testing.assert_close(said @ known, styles[2:, 0], atol=1e-5, rtol=0)
    for weights in said:  # each known part of a caption weighs the same, the others nothing
        torch.testing.assert_close(
            weights * (weights - weights.max()), torch.zeros_like(weights), atol=1e-4, rtol=0
        )
    assert len({tuple((weights > 1e-3).tolist()) for weights in said}) > 2
