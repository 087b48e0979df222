"""Bootstrap over prompts against what theory says."""

import numpy as np
import pytest

from diffdpo.statistics import Interval, cluster_weights, members, paired_effect, weighted_quantiles


def test_the_effect_is_the_mean_difference_and_the_win_rate_counts_ties_half():
    effect = paired_effect(
        np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 7.0]), ["a", "b", "c", "d"]
    )
    assert effect.mean == pytest.approx(0.75)
    assert effect.win_rate == pytest.approx(2.5 / 4)
    assert effect.effect_size == pytest.approx(0.75 / np.std([1, 2, 3, 4], ddof=1))
    assert (effect.count, effect.clusters) == (4, 4)
    assert effect.low <= effect.mean <= effect.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shift = rng.normal(0.3, 1.0, 40)  # one true effect a prompt, mean 0.3
        before = rng.normal(0, 1, (40, 3))
        after = before + shift[:, None] + rng.normal(0, 0.1, (40, 3))
        names = np.repeat([f"p{i}" for i in range(40)], 3).tolist()
        effect = paired_effect(before.ravel(), after.ravel(), names, resamples=400, seed=seed)
        covered += effect.low <= 0.3 <= effect.high
    assert 0.89 <= covered / 200 <= 0.99


def test_samples_of_one_prompt_are_not_independent_evidence():
    rng = np.random.default_rng(0)
    shift = np.repeat(rng.normal(0, 1, 10), 20)
    before = np.zeros(200)
    clustered = paired_effect(before, shift, np.repeat([f"p{i}" for i in range(10)], 20).tolist())
    naive = paired_effect(before, shift, [f"s{i}" for i in range(200)])
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


def test_direction_needs_an_interval_that_leaves_out_zero():
    names = [f"p{i}" for i in range(30)]
    rng = np.random.default_rng(1)
    before = rng.normal(size=30)
    assert paired_effect(before, before + 1 + 0.1 * rng.normal(size=30), names).direction == "better"
    assert paired_effect(before, before - 1 + 0.1 * rng.normal(size=30), names).direction == "worse"
    assert paired_effect(before, before + rng.normal(size=30), names).direction == "unclear"


def test_cluster_weights_are_one_and_then_draws_with_replacement():
    weights = cluster_weights(["b", "a", "c", "a", "d"], resamples=4000)
    assert (weights[0] == 1).all()
    assert weights.shape == (4001, 4)
    assert (weights.sum(1) == 4).all()
    np.testing.assert_allclose(weights[1:].mean(0), 1, atol=0.05)
    np.testing.assert_allclose(weights[1:].var(0), 3 / 4, atol=0.06)  # binomial: n p (1 - p)
    assert members(["b", "a", "c", "a", "d"]).tolist() == [1, 0, 2, 0, 3]


def test_the_same_clusters_are_drawn_alike_and_others_independently():
    one = cluster_weights(list("abcd"), resamples=2000)
    np.testing.assert_array_equal(one, cluster_weights(list("ddbca"), resamples=2000))
    other = cluster_weights(list("efgh"), resamples=2000)
    assert abs(np.corrcoef(one[1:, 0], other[1:, 0])[0, 1]) < 0.07
    assert not (cluster_weights(list("abcd"), resamples=2000, seed=1) == one).all()


def test_an_interval_of_draws_of_a_mean_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(2.0, 1.0, 100)
    weights = cluster_weights([f"{i:03d}" for i in range(100)], resamples=4000)
    found = Interval.of(weights @ values / 100)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 10
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_weighted_quantiles_are_those_of_repeated_values():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=50), rng.integers(0, 4, (20, 50)).astype(float)
    for share in (0.01, 0.1, 0.5, 0.97):
        expected = [
            np.quantile(np.repeat(values, w.astype(int)), share, method="inverted_cdf") for w in weights
        ]
        np.testing.assert_array_equal(weighted_quantiles(values, weights, share), expected)
