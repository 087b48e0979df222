"""Targets that users give: what they say, what fits, and one line for what does not."""

import math

import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.encoders.style import pretrained_encoder
from diffdpo.errors import ConfigError, DataError
from diffdpo.hub import BUNDLE
from diffdpo.search.style_loss import embed_sound
from diffdpo.search.targets import IntensityTarget, MelodyTarget, SongSpec, StructureTarget, parse_targets
from diffdpo.types import Clip, Prompt

RATE = 22050
SONG = SongSpec(sample_rate=RATE, seconds=4.0, prompt=Prompt(id="p", text="slow, dark", duration_s=4))


def swell(levels, seconds=4.0, rate=RATE):
    """Noise whose level in dB runs along straight lines through `levels`."""
    time = np.linspace(0, seconds, int(seconds * rate), endpoint=False)
    decibels = np.interp(time, np.linspace(0, seconds, len(levels)), levels)
    samples = np.random.default_rng(0).standard_normal((1, len(time))) * 10 ** (decibels / 20)
    return torch.from_numpy(samples).float()


def tones(pitches, seconds=4.0, rate=RATE):
    each = int(seconds * rate / len(pitches))
    time = torch.arange(each) / rate
    waves = [0.3 * torch.sin(2 * math.pi * 440 * 2 ** ((pitch - 69) / 12) * time) for pitch in pitches]
    return torch.cat(waves)[None]


def write(path, sound):
    audio.write(path, Clip(samples=sound.numpy(), sample_rate=RATE))
    return str(path)


def test_a_loudness_curve_is_met_by_the_sound_that_has_it(tmp_path):
    curve = [[0, -40], [2, -20], [4, -40]]
    sound = swell([-40, -20, -40])
    for target in (IntensityTarget(curve=curve), IntensityTarget(audio=write(tmp_path / "a.flac", sound))):
        loss = target.build(SONG)
        assert loss(sound, 0.0) < 0.02
        assert loss(3 * sound, 0.0) < 0.02  # relative: songs are brought to one loudness
        assert loss(swell([-20, -40, -20]), 0.0) > 1.0
        half = sound[:, 2 * RATE :]
        assert loss(half, 2.0) < 0.02 < loss(half, 0.0)
    absolute = IntensityTarget(curve=curve, relative=False).build(SONG)
    assert absolute(sound, 0.0) < 0.02
    assert absolute(sound * 10 ** (10 / 20), 0.0).item() == pytest.approx(1.0, abs=0.15)  # (10 dB)²


def test_a_melody_of_notes_is_that_of_a_recording_of_it(tmp_path):
    pitches = [60, 64, 67, 72]
    notes = [[number, number + 1, pitch] for number, pitch in enumerate(pitches)]
    path = write(tmp_path / "melody.wav", tones(pitches))
    for target in (MelodyTarget(notes=notes), MelodyTarget(audio=path)):
        loss = target.build(SONG)
        assert loss(tones(pitches), 0.0) < 0.1
        assert loss(tones([48, 76, 55, 84]), 0.0) < 0.1  # octaves do not matter
        assert loss(tones([61, 66, 70, 73]), 0.0) > 0.7
        assert loss(tones([67, 72], 2.0), 2.0) < 0.1


def test_a_form_is_met_whatever_it_is_made_of(tmp_path):
    form = write(tmp_path / "form.wav", tones([60, 66, 60, 66], 8.0))
    loss = StructureTarget(audio=form, features="harmony").build(SONG)
    assert loss(tones([62, 69, 62, 69]), 0.0) < 0.1
    assert loss(tones([62, 62, 69, 69]), 0.0) > 0.3


def test_the_style_of_a_sound_is_the_encoders_and_has_a_gradient():
    encoder = pretrained_encoder(BUNDLE)
    sound = (tones([60, 64, 67, 72]) + 0.05 * swell([-20, -10])).expand(2, -1).clone()
    expected = encoder.embed_clip(Clip(samples=sound.numpy(), sample_rate=RATE))
    leaf = sound.requires_grad_()
    style = embed_sound(encoder, leaf, RATE)
    assert torch.allclose(style.detach(), expected, atol=1e-4)
    (loss,) = [entry.target.build(SONG) for entry in parse_targets([{"name": "style"}])]
    value = loss(leaf, 0.0)
    assert value.item() == pytest.approx(1 - float(expected @ encoder.embed("slow, dark", None)), abs=1e-3)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "intensty", "curve": [[0, 1]]}, "Did you mean 'intensity'"),
        ({"name": "intensity"}, "needs curve or audio"),
        ({"name": "intensity", "curve": [[0, 1]], "audio": "a"}, "not both"),
        ({"name": "intensity", "curve": [[0, -3], [0, -4]]}, "must rise"),
        ({"name": "intensity", "curve": [[0, "loud"]]}, r"\[second, dB\]"),
        ({"name": "intensity", "curve": [[0, 1]], "smoothing": 1}, "Did you mean 'smoothing_s'"),
        ({"name": "melody", "notes": [[1, 1, 60]]}, "end after it starts"),
        ({"name": "melody", "notes": [[1, 60]]}, "MIDI pitch"),
        ({"name": "structure"}, "needs audio"),
        ({"name": "structure", "audio": "a", "features": "rhythm"}, "timbre or harmony"),
        ({"name": "style", "weight": 0}, "weight of style"),
        ({"curve": [[0, 1]]}, "each needs a name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_target_is_refused_in_one_line(entry, message):
    with pytest.raises((ConfigError, ValueError), match=message) as caught:
        parse_targets([entry])
    assert "\n" not in str(caught.value)


def test_recordings_that_are_absent_or_too_short_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no recording"):
        MelodyTarget(audio=str(tmp_path / "none.wav")).build(SONG)
    short = MelodyTarget(audio=write(tmp_path / "short.wav", tones([60], 1.0))).build(SONG)
    assert short(tones([60, 70]), 0.0) < 0.2  # compared as far as it goes
    with pytest.raises(DataError, match="ends before"):
        short(tones([60]), 3.0)
