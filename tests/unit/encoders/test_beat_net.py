"""The beats of BeatNet: a click track, the front end in closed form, and weights stored as integers."""

import numpy as np
import pytest
import torch

from diffdpo.encoders.beat_net import (
    BEATS_FRAMES_PER_SECOND,
    BEATS_HOP,
    BEATS_SAMPLE_RATE,
    BeatEnsemble,
    beat_features,
    build_beat_networks,
    filter_bank,
    join_levels,
    pretrained_beat_networks,
    split_levels,
)
from diffdpo.errors import CheckpointError


def clicks(period_s: float, seconds: float = 10.0) -> torch.Tensor:
    """Bursts of noise, every fourth louder."""
    rng = np.random.default_rng(0)
    wave = np.zeros(round(seconds * BEATS_SAMPLE_RATE), np.float32)
    for number, start in enumerate(np.arange(0.1, seconds - 0.1, period_s)):
        begin = round(start * BEATS_SAMPLE_RATE)
        burst = rng.standard_normal(1000) * np.exp(-np.arange(1000) / 150)
        wave[begin : begin + 1000] += (0.6 if number % 4 == 0 else 0.3) * burst
    return torch.from_numpy(wave)


def test_beats_are_heard_at_clicks_and_not_between():
    activity = pretrained_beat_networks().track(clicks(0.5)).sum(1).numpy()
    phase = (np.arange(len(activity)) / BEATS_FRAMES_PER_SECOND - 0.1) % 0.5
    late = np.arange(len(activity)) > 2 * BEATS_FRAMES_PER_SECOND  # the network only hears the past
    near, far = late & (phase < 0.06), late & (phase > 0.15) & (phase < 0.4)
    assert activity[near].mean() > 5 * activity[far].mean()


def test_the_network_only_hears_the_past():
    wave = clicks(0.5)
    track = pretrained_beat_networks().track
    part = track(wave[: 5 * BEATS_SAMPLE_RATE])[:-2]
    assert torch.allclose(track(wave)[: len(part)], part, atol=1e-5)


def test_bands_are_triangles_of_sum_1_from_30_hz_up():
    bank = filter_bank().numpy()
    assert bank.shape == (705, 136)
    assert bank.sum(0) == pytest.approx(np.ones(136))
    tops = bank.argmax(0)
    assert (np.diff(tops) > 0).all()
    assert tops[0] * BEATS_SAMPLE_RATE / 1410 == pytest.approx(46.9, abs=0.1)  # the lowest begins below it


def test_features_are_levels_and_their_rise():
    features = beat_features(clicks(0.5, 2.0)).numpy()
    assert features.shape == (-(-2 * BEATS_SAMPLE_RATE // BEATS_HOP), 272)
    levels, rise = features[:, :136], features[:, 136:]
    assert rise[1:] == pytest.approx(np.maximum(np.diff(levels, axis=0), 0), abs=1e-6)
    assert not rise[0].any()


def test_weights_survive_as_integers_of_16_bits():
    state = {"a.weight": torch.randn(5, 7) * torch.logspace(-6, 6, 5)[:, None], "a.bias": torch.randn(5)}
    joined = join_levels(split_levels(state))
    assert torch.equal(joined["a.bias"], state["a.bias"])
    error = (joined["a.weight"] - state["a.weight"]).abs().amax(1)
    assert (error <= state["a.weight"].abs().amax(1) / 65_000).all()


def test_weights_of_another_network_are_refused():
    state = BeatEnsemble(2).state_dict()
    state["networks.1.output.bias"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=r"beats\.safetensors.*output\.bias \(4,\) instead of \(3,\)"):
        build_beat_networks(state, "beats.safetensors")
