"""The judges' networks against numbers of the originals: basic-pitch by onnxruntime, BeatNet by its own code."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffdpo.encoders.beat_net import pretrained_beat_networks
from diffdpo.encoders.notes import pretrained_notes
from tools.judges.convert_beats import STEP as BEAT_STEP
from tools.judges.convert_notes import PARTS
from tools.judges.convert_notes import STEP as NOTE_STEP
from tools.judges.sounds import sounds

FOLDER = Path(__file__).parent / "judges"
SOUNDS = sounds(22_050)
BELOW_ROUNDING = ("music", "half_silent")
"""Sounds with bands far below the rounding of single precision, which the logarithm shows: there the original
itself is 3e-4 from double precision."""


@pytest.mark.parametrize("name", SOUNDS)
def test_notes_onsets_and_contours_equal_the_originals(name):
    golden = load_file(FOLDER / "notes.safetensors")
    notes = pretrained_notes().transcribe(torch.from_numpy(SOUNDS[name]))
    for part in PARTS:
        values = golden[f"{name}/{part}"]
        ours = getattr(notes, part).flatten()[::NOTE_STEP]
        tolerance = 1e-3 if name in BELOW_ROUNDING else 1e-5
        assert ours.shape == values.shape
        assert (ours - values).abs().max() <= tolerance * values.max(), part


@pytest.mark.parametrize("name", SOUNDS)
def test_beats_and_downbeats_equal_the_originals(name):
    """To 3e-4: the weights are stored as integers of 16 bits. The tool compares them in full, to 1e-6."""
    values = load_file(FOLDER / "beats.safetensors")[name]
    ours = pretrained_beat_networks().track(torch.from_numpy(SOUNDS[name]))[::BEAT_STEP]
    assert ours.shape == values.shape
    assert (ours - values).abs().max() <= 5e-4


@pytest.mark.parametrize("name", ["notes", "beats"])
def test_the_numbers_say_where_they_come_from(name):
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        assert ("Apache-2.0" if name == "notes" else "CC-BY-4.0") in file.metadata()["source"]
