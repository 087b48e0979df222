"""Style words: measured where the answer is known."""

import librosa
import numpy as np
import pytest
import torch

from diffdpo.encoders.descriptors import MEASURES, directions, estimate_tuning, measure
from diffdpo.types import Clip

RATE = 22050
THIRDS = dict.fromkeys(MEASURES, (0.0, 0.0))


def tone(*hertz, seconds=6.0, side=0.0):
    time = np.arange(int(seconds * RATE)) / RATE
    mono = sum(np.sin(2 * np.pi * f * time) for f in hertz) * 0.1
    other = np.sin(2 * np.pi * 311 * time) * 0.1 * side
    return Clip(samples=np.stack([mono + other, mono - other]).astype(np.float32), sample_rate=RATE)


def clicks(bpm, seconds=12.0):
    samples = np.random.default_rng(0).normal(0, 1e-4, int(seconds * RATE))
    for start in np.arange(0, seconds - 0.1, 60 / bpm):
        at = int(start * RATE)
        samples[at : at + 400] += np.hanning(400) * np.sin(np.arange(400) * 0.9)
    return Clip(samples=np.stack([samples, samples]).astype(np.float32) * 0.3, sample_rate=RATE)


def test_measures_order_what_they_claim_to_measure():
    assert measure(tone(3000))["centroid_octaves"] > measure(tone(300))["centroid_octaves"]
    assert measure(tone(440, side=1.0))["width_db"] > measure(tone(440, side=0.1))["width_db"] + 15
    assert measure(clicks(240))["onsets_per_s"] == pytest.approx(4.0, abs=0.4)
    assert measure(clicks(60))["onsets_per_s"] == pytest.approx(1.0, abs=0.3)
    assert measure(clicks(120))["punch"] > measure(tone(440))["punch"]
    major, minor = tone(261.63, 329.63, 392.0), tone(261.63, 311.13, 392.0)
    assert measure(major)["mode"] > measure(minor)["mode"]


def test_level_does_not_matter():
    loud = clicks(100)
    quiet = Clip(samples=loud.samples * 0.05, sample_rate=RATE)
    for name, value in measure(loud).items():
        assert measure(quiet)[name] == pytest.approx(value, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("cents", [-40, -7, 0, 18, 45])
def test_tuning_is_librosas_estimate_from_the_whole_spectrum(cents):
    samples = tone(*(hertz * 2 ** (cents / 1200) for hertz in (220.0, 329.63, 440.0))).samples[0]
    power = np.abs(librosa.stft(samples, n_fft=2048, hop_length=512)) ** 2
    assert estimate_tuning(power) == librosa.estimate_tuning(S=power, sr=RATE)
    assert estimate_tuning(power) == pytest.approx(cents / 100, abs=0.05)
    assert estimate_tuning(np.zeros_like(power)) == 0


def test_words_are_unit_directions_that_hardly_overlap():
    slow, fast = directions(["slow"], 512), directions(["fast"], 512)
    assert slow.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert abs(torch.dot(slow, fast).item()) < 0.2
    both = directions(["slow", "fast"], 512)
    assert torch.dot(both, slow).item() == pytest.approx(0.707, abs=0.1)
    assert torch.equal(both, directions(["fast", "slow"], 512))
    assert directions([], 512).abs().max() == 0
