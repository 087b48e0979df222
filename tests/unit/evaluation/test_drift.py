"""Drift against closed forms: the KL divergence of two Gaussians whose velocities are known exactly."""

import math

import numpy as np
import pytest
import torch

from diffdpo.errors import DataError
from diffdpo.evaluation.drift import (
    WINNER_TIMES,
    NoiseGrid,
    mean_divergence,
    noised_velocities,
    song_divergences,
    song_errors,
)

SHAPE = (4000, 3, 2)


def gaussian_velocity(mean, deviation):
    """E[noise - song | x] where songs are normal with this mean and deviation in every element."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * deviation**2 + t**2
        residual = (x - (1 - t) * mean) / variance
        return t * residual - (mean + (1 - t) * deviation**2 * residual)

    return velocity


def divergence(aligned, reference, grid=None, count=SHAPE[0]):
    grid, generator = grid or NoiseGrid(), torch.Generator().manual_seed(0)
    draw = (count, *SHAPE[1:])
    songs = aligned[0] + aligned[1] * torch.randn(draw, generator=generator, dtype=torch.float64)
    noise = torch.randn(draw, generator=generator, dtype=torch.float64)
    sides = [
        noised_velocities(gaussian_velocity(*law), songs, noise, grid.times) for law in (aligned, reference)
    ]
    return song_divergences(*sides, grid)


def closed_form(aligned, reference):
    """KL of two normal laws, in nats an element."""
    (m1, s1), (m2, s2) = aligned, reference
    return math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


@pytest.mark.parametrize(
    ("aligned", "reference"),
    [
        ((0.3, 1.0), (0.0, 1.0)),
        ((0.0, 0.7), (0.0, 1.0)),
        ((0.0, 1.3), (0.0, 1.0)),
        ((0.5, 0.8), (-0.2, 1.1)),
        ((0.2, 0.5), (0.0, 0.6)),
    ],
)
def test_drift_is_the_divergence_of_two_gaussians(aligned, reference):
    expectation = closed_form(aligned, reference) * math.prod(SHAPE[1:])
    assert divergence(aligned, reference).mean() == pytest.approx(expectation, rel=0.03)


def test_a_shift_has_no_sampling_error_and_the_grid_of_six_points_is_within_a_percent():
    """The velocities of two normal laws of one deviation differ by a number that depends on t alone."""
    for grid in (NoiseGrid(), NoiseGrid(points=64, reach=8.0)):
        value = divergence((0.3, 1.0), (0.0, 1.0), grid, count=2)
        assert value == pytest.approx(0.3**2 / 2 * math.prod(SHAPE[1:]), rel=0.01)


def test_a_model_has_no_divergence_from_itself_and_it_grows_with_the_number_of_frames():
    assert divergence((0.3, 0.9), (0.3, 0.9), count=4) == pytest.approx(0, abs=1e-12)
    zeros = torch.zeros(6, 2, 5, 1)
    long = torch.zeros(6, 2, 10, 1) + 0.1
    short = long[:, :, :5]
    assert song_divergences(long, torch.cat([zeros, zeros], 2), NoiseGrid()) == pytest.approx(
        2 * song_divergences(short, zeros, NoiseGrid())
    )


def test_divergence_is_quadratic_in_the_difference_and_not_below_zero():
    reference, difference = torch.randn(6, 3, 4, 2), torch.randn(6, 3, 4, 2)
    single, double = (song_divergences(reference + k * difference, reference, NoiseGrid()) for k in (1, 2))
    assert (single > 0).all()
    assert double == pytest.approx(4 * single, rel=1e-4)


def test_every_second_point_has_the_negative_of_the_noise():
    songs, noise = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    rows = noised_velocities(lambda x, t: 2 * x, songs, noise, (0.5, 0.5))
    assert rows.shape == (2, 3, 4, 2)
    assert torch.allclose(rows[0], songs + noise)
    assert torch.allclose(rows.mean(0), songs, atol=1e-6)


def test_the_mean_has_an_interval_over_prompts_that_holds_it():
    values = np.array([1.0, 3.0, 2.0, 6.0] * 4)
    interval = mean_divergence(values, [f"p{k // 2}" for k in range(16)])
    assert interval.value == pytest.approx(3.0)
    assert interval.low < 3.0 < interval.high
    with pytest.raises(DataError, match="finite"):
        mean_divergence(np.array([1.0, math.nan]), ["a", "b"])


def test_the_error_of_songs_is_zero_for_the_true_velocity_and_does_not_see_what_is_behind_the_end():
    songs, noise = torch.randn(2, 6, 3), torch.randn(2, 6, 3)
    frames = torch.tensor([6, 4])

    def true_velocity(x, t):
        return (x - songs) / t  # noise - song of either sign

    rows = noised_velocities(true_velocity, songs, noise, WINNER_TIMES)
    assert song_errors(rows, songs, noise, frames) == pytest.approx(0, abs=1e-9)
    rows[:, 1, 4:] = math.nan
    assert song_errors(rows, songs, noise, frames) == pytest.approx(0, abs=1e-9)
    assert song_errors(rows + 0.5, songs, noise, frames) == pytest.approx(0.25, abs=1e-4)
