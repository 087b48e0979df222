"""Kernel distance against what is known of it."""

import numpy as np
import pytest

from diffdpo.evaluation.distances import kernel_distance, median_bandwidth


def gaussian(count, mean=0.0, seed=0, dim=5):
    return np.random.default_rng(seed).normal(mean, 1, (count, dim))


def test_two_samples_of_one_distribution_are_at_distance_zero_on_average():
    bandwidth = median_bandwidth(gaussian(200))
    distances = [
        kernel_distance(gaussian(60, seed=2 * i), gaussian(60, seed=2 * i + 1), bandwidth) for i in range(60)
    ]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(60)


def test_the_distance_of_gaussians_is_the_closed_form():
    """MMD² of N(0, I) and N(m, I) in d dimensions, width s: 2 (s²/(s²+2))^{d/2} (1 - exp(-m²/(2(s²+2))))."""
    dim, bandwidth, shift = 3, 2.0, 1.0
    expected = 2 * (bandwidth**2 / (bandwidth**2 + 2)) ** (dim / 2)
    expected *= 1 - np.exp(-dim * shift**2 / (2 * (bandwidth**2 + 2)))
    found = kernel_distance(gaussian(3000, dim=dim), gaussian(3000, shift, seed=1, dim=dim), bandwidth)
    assert found == pytest.approx(100 * expected, rel=0.05)


def test_further_is_further():
    reference = gaussian(100)
    bandwidth = median_bandwidth(reference)
    near, far = (kernel_distance(reference, gaussian(100, m, seed=1), bandwidth) for m in (0.3, 1.0))
    assert 0 < near < far
