"""Gates find each fault by itself, in numbers a reader can check."""

import math

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from diffdpo.errors import ConfigError
from diffdpo.scorers.gates import FILTER_GAIN, FILTER_HALF_WIDTH, LIMITS, failures, gates, passes
from diffdpo.types import Clip

RATE = 16_000


def clip(samples: np.ndarray) -> Clip:
    return Clip(samples=np.atleast_2d(samples).astype(np.float32), sample_rate=RATE)


def sine(hertz: float = 440.0, seconds: float = 2.0, phase: float = 0.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE + phase)


def test_a_clean_tone_passes_every_gate():
    found = gates(clip(sine()))
    assert passes(found)
    assert found["seconds"] == 2.0
    assert found["true_peak_db"] == pytest.approx(-6.02, abs=0.1)


def test_half_a_clip_of_silence_is_a_half():
    found = gates(clip(np.concatenate([sine(), np.zeros(2 * RATE)])))
    assert found["silence_ratio"] == pytest.approx(0.5, abs=0.01)


def test_clipping_shows_in_runs_and_a_steep_peak_does_not():
    assert gates(clip(np.clip(3 * sine(), -1, 1)))["clip_run_ratio"] > 0.4
    assert gates(clip(sine(3000)))["clip_run_ratio"] == 0


def test_a_run_needs_three_samples():
    x = 0.1 * sine()
    x[100:102] = 1.0
    assert gates(clip(x))["clip_run_ratio"] == 0
    x[100:103] = 1.0
    assert gates(clip(x))["clip_run_ratio"] == pytest.approx(3 / len(x))


def test_true_peak_is_found_between_samples():
    """At a quarter of the sample rate and 45° every sample of a full-scale sine is 0.707."""
    x = 2 * sine(RATE / 4, phase=np.pi / 4)
    assert np.abs(x).max() == pytest.approx(0.7071, abs=1e-3)
    assert gates(clip(x))["true_peak_db"] == pytest.approx(0.0, abs=0.3)


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 200, 5000])
@pytest.mark.parametrize("channels", [1, 2])
def test_true_peak_is_that_of_the_whole_clip_oversampled(length, channels):
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((channels, length)).astype(np.float32)
        x[:, length // 2 :] *= 0.3 + 0.2 * seed
        oversampled = resample(torch.from_numpy(x), RATE, 4 * RATE)
        peak = max(float(oversampled.abs().max()), float(np.abs(x).max()))
        assert gates(clip(x))["true_peak_db"] == pytest.approx(20 * math.log10(peak), abs=1e-5)


def test_no_wave_gains_more_by_oversampling_than_its_filter_allows():
    impulse = torch.zeros(1, 65)
    impulse[0, 32] = 1.0
    taps = resample(impulse, 1, 4).reshape(-1, 4)
    assert taps.abs().sum(0).max() < FILTER_GAIN
    assert taps.abs().sum(1).nonzero().sub(32).abs().max() <= FILTER_HALF_WIDTH


def test_offset_and_bad_numbers():
    x = sine()
    assert gates(clip(x + 0.5))["dc_offset"] == pytest.approx(0.5, abs=0.01)
    x[:320] = np.nan
    x[320] = np.inf
    found = gates(clip(x))
    assert found["non_finite_ratio"] == pytest.approx(321 / len(x))
    assert failures(found) == ["non_finite_ratio"]


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((2, 0)),
        np.zeros((1, 1)),
        np.full((1, 100), np.nan),
        np.full((2, 50), 3e38),
        np.zeros((1, RATE)),
    ],
    ids=["empty", "one sample", "all NaN", "huge", "silent"],
)
def test_all_gates_are_finite_and_hopeless_clips_fail(samples):
    found = gates(clip(samples))
    assert all(math.isfinite(value) for value in found.values())
    assert not passes(found)


def test_limits_may_be_narrowed_but_not_misspelt():
    found = gates(clip(sine()))
    assert failures(found, dict(LIMITS) | {"true_peak_db": (-60.0, -10.0)}) == ["true_peak_db"]
    with pytest.raises(ConfigError, match="Did you mean 'silence_ratio'"):
        failures(found, {"silence_ration": (0.0, 0.5)})
