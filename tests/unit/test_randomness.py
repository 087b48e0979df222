"""Randomness belongs to the example."""

import pytest
import torch

from diffdpo.randomness import draw_noise, draw_uniform, seed_for


def test_seeds_are_the_same_on_every_machine():
    assert (
        seed_for(0, 7, "noise") == 7947988397508741570
    )  # written down once; a change breaks every resumed run


def test_seed_key_and_purpose_all_matter():
    assert len({seed_for(s, k, p) for s in (0, 1) for k in (0, 1) for p in ("noise", "timestep")}) == 8


def test_noise_does_not_depend_on_the_batch():
    together = draw_noise(3, [5, 6, 7], 20, 8)
    assert torch.equal(together[1:2], draw_noise(3, [6], 20, 8))


@pytest.mark.parametrize("channels", [64, 5])
def test_a_longer_song_begins_with_the_noise_of_the_shorter(channels):
    long, short = draw_noise(0, ["a"], 37, channels), draw_noise(0, ["a"], 24, channels)
    kept = 24 if 24 * channels % 16 == 0 else 24 * channels // 16 * 16 // channels
    assert torch.equal(long[:, :kept], short[:, :kept])


def test_noise_is_standard_normal():
    noise = draw_noise(0, range(4), 1000, 64)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_purposes_are_independent():
    one, two = (draw_uniform(0, range(2000), purpose) for purpose in ("drop-style", "drop-audio"))
    assert torch.corrcoef(torch.stack([one, two]))[0, 1].abs() < 0.06
