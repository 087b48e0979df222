"""Kernel distance against what is known of it."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffdpo.errors import DataError
from diffdpo.evaluation.distances import (
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    kernel_distances,
    median_bandwidth,
)
from diffdpo.statistics import Interval, cluster_weights, members


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


def test_resampling_begins_with_the_distance_itself_and_counts_drawn_songs_as_songs():
    """Row k against the plain formula: songs drawn twice are two songs, but not one another's copies."""
    one, two = gaussian(13), gaussian(11, 0.5, seed=1)
    songs, others = list("aaabbbbccdddd"), list("xxyyyyzzzzz")
    draws = kernel_distances(one, songs, two, others, 2.0, resamples=5)
    assert draws[0] == pytest.approx(kernel_distance(one, two, 2.0))
    kernel = [np.exp(-cdist(a, b, "sqeuclidean") / 8) for a, b in ((one, one), (two, two), (one, two))]
    weights = [cluster_weights(names, resamples=5)[:, members(names)] for names in (songs, others)]
    for draw, w, v in zip(draws, *weights, strict=True):
        within = []
        for matrix, names, count in ((kernel[0], songs, w), (kernel[1], others, v)):
            pairs = np.array([[(p == q) for q in names] for p in names])
            times = np.where(pairs, count[:, None], np.outer(count, count)) * (1 - np.eye(len(names)))
            within.append((times * matrix).sum() / times.sum())
        assert draw == pytest.approx(100 * (sum(within) - 2 * w @ kernel[2] @ v / (w.sum() * v.sum())))


def test_the_interval_covers_the_distance_and_is_wider_than_one_over_items():
    """Items of a song are alike. Against the true distance, by the closed form for Gaussians of the same width."""
    dim, bandwidth, spread, covered, wider = 3, 2.0, 0.8, 0, []
    total = spread**2 + 0.6**2  # variance of an item
    scale = bandwidth**2 / (bandwidth**2 + 2 * total)
    truth = 200 * scale ** (dim / 2) * (1 - np.exp(-dim / (2 * (bandwidth**2 + 2 * total))))

    def songs(rng, mean, count):
        centres = rng.normal(mean, spread, (count, 1, dim))
        return (centres + rng.normal(0, 0.6, (count, 4, dim))).reshape(-1, dim)

    def clusters(prefix, count):
        return [f"{prefix}{i}" for i in range(count) for _ in range(4)]

    for trial in range(40):
        rng = np.random.default_rng(trial)
        one, two = songs(rng, 0.0, 30), songs(rng, 1.0, 24)
        names = clusters("a", 30), clusters("b", 24)
        found = Interval.of(kernel_distances(one, names[0], two, names[1], bandwidth, resamples=300))
        apart = [[f"{name}{i}" for i, name in enumerate(each)] for each in names]
        naive = Interval.of(kernel_distances(one, apart[0], two, apart[1], bandwidth, resamples=300))
        covered += found.low <= truth <= found.high
        wider.append((found.high - found.low) / (naive.high - naive.low))
    assert 0.85 <= covered / 40 <= 1
    assert np.median(wider) > 1.4


def test_sets_of_the_same_songs_are_resampled_alike():
    rng = np.random.default_rng(0)
    reference, songs = gaussian(60), np.repeat([f"s{i}" for i in range(15)], 4).tolist()
    prompts = np.repeat([f"p{i}" for i in range(10)], 4).tolist()
    near, far = gaussian(40, 0.4, seed=1), gaussian(40, 0.6, seed=1)
    draws = [kernel_distances(reference, songs, x, prompts, 3.0, resamples=200) for x in (near, far)]
    single = Interval.of(draws[1])
    paired = Interval.of(draws[1] - draws[0])
    assert paired.low > 0
    assert paired.high - paired.low < 0.5 * (single.high - single.low)
    order = rng.permutation(40)
    again = kernel_distances(reference, songs, near[order], [prompts[i] for i in order], 3.0, resamples=200)
    np.testing.assert_allclose(again, draws[0])


def test_a_draw_without_pairs_is_no_number():
    draws = kernel_distances(gaussian(6), list("aabbcc"), gaussian(2, seed=1), list("xy"), 1.0, resamples=40)
    assert np.isfinite(draws[0])
    assert np.isnan(draws).any()


def with_moments(mean, covariance, count, seed=0):
    """Items with exactly this mean and covariance."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(count, len(mean)))
    items -= items.mean(0)
    items = items @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(items, rowvar=False)))).T
    return items @ np.linalg.cholesky(np.asarray(covariance, float)).T + np.asarray(mean)


def test_the_frechet_distance_of_normal_laws():
    """Of commuting covariances: the squared shift and the squared differences of the deviations."""
    first = with_moments([0, 0, 0], np.diag([1.0, 4.0, 9.0]), 200)
    second = with_moments([1, 2, 0], np.diag([4.0, 4.0, 1.0]), 90, seed=1)
    assert frechet_distance(first, second) == pytest.approx(5 + 1 + 0 + 4)
    assert frechet_distance(second, first) == pytest.approx(10)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(10)


def test_the_frechet_distance_of_one_dimension():
    first, second = with_moments([0], [[4.0]], 50), with_moments([3], [[1.0]], 60, seed=1)
    assert frechet_distance(first, second) == pytest.approx(9 + 1)


def test_infinitely_many_items_of_one_law_are_at_no_distance():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(20_000, 12))
    plain, infinite = [], []
    for _ in range(6):
        items = rng.normal(size=(120, 12))
        plain.append(frechet_distance(reference, items))
        infinite.append(frechet_distance_infinity(reference, items))
    assert np.mean(plain) == pytest.approx((12**2 + 5 * 12) / (4 * 120), rel=0.25)
    assert abs(np.mean(infinite)) < 0.2 * np.mean(plain)
    shifted = [frechet_distance_infinity(reference, rng.normal(0.5, 1, size=(120, 12))) for _ in range(6)]
    assert np.mean(shifted) == pytest.approx(12 * 0.25, rel=0.1)


def test_too_few_items_have_no_frechet_distance():
    with pytest.raises(DataError, match="16 or more"):
        frechet_distance_infinity(np.eye(30), np.eye(30)[:15])
    with pytest.raises(DataError, match="two items"):
        frechet_distance(np.eye(3), np.ones((1, 3)))
