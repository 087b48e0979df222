"""Embeddings of a song's windows: what is embedded, and that captions say parts of what is true."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from support.ace_step import write_diffusers
from support.bundle import write_bundle

from diffdpo.data.song_manifest import SongEntry
from diffdpo.encoders.descriptors import THIRDS, measure, measured_words
from diffdpo.models import MODELS
from diffdpo.recipes.prepare import PrepareRun, embed_windows
from diffdpo.sounds import sound_of
from diffdpo.types import Clip, Prompt

SONG = SongEntry(id="one", audio=Path("one.wav"), text="rock, ambient")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return MODELS["tiny"](bundle=str(write_bundle(tmp_path_factory.mktemp("bundle")))).load()


@pytest.fixture(scope="module")
def clip():
    samples = np.random.default_rng(0).normal(0, 0.1, (2, 4 * 44100)).astype(np.float32)
    return Clip(samples=samples, sample_rate=44100)


def styles(model, clip, song, cfg):
    """The style vectors of embed_windows, [variant, window, dim]."""
    variants = embed_windows(model, sound_of(clip), song, cfg)
    return torch.stack([torch.stack([embedding["style"] for embedding in windows]) for windows in variants])


def text_style(model, text):
    return model.embed(Prompt(id="t", text=text))["style"]


def test_without_captions_a_window_has_styles_of_both_of_sound_and_of_text(model, clip):
    cfg = PrepareRun(style_window_s=2.0)
    variants = styles(model, clip, SONG, cfg)
    assert variants.shape == (3, 2, 16)
    assert torch.equal(variants[2], torch.stack([text_style(model, SONG.text)] * 2))
    untitled = styles(model, clip, replace(SONG, text=""), cfg)
    assert torch.equal(untitled, variants[1].expand(3, -1, -1))


def test_a_model_is_shown_a_songs_own_sound_only_as_it_was_trained(tmp_path, model, clip):
    """The tiny model by default, ACE-Step, whose trainer gives no reference, where one asks for it."""
    cfg = PrepareRun(style_window_s=4.0, style="none")
    assert torch.equal(styles(model, clip, SONG, cfg), text_style(model, SONG.text)[None, None])
    ace_step = MODELS["ace_step"](checkpoint=str(write_diffusers(tmp_path))).load()
    silent = ace_step.embed(Prompt(id="t", text=SONG.text, duration_s=4.0))
    heads = {
        style: [
            windows[0]["head"]
            for windows in embed_windows(ace_step, sound_of(clip), SONG, replace(cfg, style=style))
        ]
        for style in ("auto", "windows")
    }  # fmt: skip
    assert [torch.equal(head, silent["head"]) for head in heads["auto"]] == [True]
    assert [torch.equal(head, silent["head"]) for head in heads["windows"]] == [False, False, True]


def test_captions_say_parts_of_the_text_and_of_what_is_measured(model, clip):
    cfg = PrepareRun(style_window_s=4.0, captions=6)
    variants = styles(model, clip, SONG, cfg)
    assert variants.shape == (8, 1, 16)
    assert torch.equal(variants, styles(model, clip, SONG, cfg))
    parts = ["rock", "ambient", *measured_words(measure(clip), THIRDS)]
    assert "bright" in parts  # white noise
    subsets = [subset for n in range(1, len(parts) + 1) for subset in combinations(parts, n)]
    texts = torch.stack([text_style(model, ", ".join(subset)) for subset in subsets])
    distance = (variants[2:, :1] - texts).norm(dim=-1)  # the order of the parts is no matter to the style
    assert distance.min(1).values.max() < 1e-5
    captions = [subsets[i] for i in distance.argmin(1)]
    assert len(set(captions)) > 2
    assert {part for caption in captions for part in caption} > {"bright"}
