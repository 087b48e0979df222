"""Intervals over prompts against what theory says."""

import math

import numpy as np
import pytest
from scipy import stats

from diffdpo.statistics import (
    Interval,
    adjust_p_values,
    cluster_weights,
    estimate_difference,
    estimate_mean,
    members,
    paired_effect,
    weighted_quantiles,
)


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
        effect = paired_effect(before.ravel(), after.ravel(), names)
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


def test_songs_alike_within_prompts_count_once():
    """With equal numbers of songs the estimate is the mean of the prompts' means, with its standard error."""
    means = np.random.default_rng(3).normal(0.2, 1.0, 9)
    estimate = estimate_mean(np.repeat(means, 2), [f"p{i // 2}" for i in range(18)])
    assert (estimate.mean, estimate.error) == pytest.approx((means.mean(), stats.sem(means)), rel=1e-12)
    interval, single = estimate.interval(), estimate_mean(means, [f"p{i}" for i in range(9)]).interval()
    assert (interval.low, interval.high) == pytest.approx((single.low, single.high), rel=1e-9)


def test_one_prompt_has_no_interval_and_few_have_no_verdict():
    one = paired_effect(np.zeros(2), np.array([-1e-6, -2e-6]), ["x", "x"])
    assert (one.low, one.high, one.direction) == (-math.inf, math.inf, "unclear")
    for count, direction in ((2, "unclear"), (7, "unclear"), (8, "better")):
        names = [f"p{i}" for i in range(count)]
        assert paired_effect(np.zeros(count), np.linspace(0.9, 1.1, count), names).direction == direction


def test_a_change_of_nothing_is_called_better_or_worse_in_one_case_of_twenty():
    names = [f"p{i // 2}" for i in range(16)]
    rng = np.random.default_rng(5)
    calls = 0
    for _ in range(500):
        own = np.repeat(rng.normal(0, 1, 8), 2) + rng.normal(0, 1, 16)
        calls += paired_effect(np.zeros(16), own, names).direction != "unclear"
    assert 0.01 <= calls / 500 <= 0.07


def sample(kind, count, rng):
    """Effects with mean 0: skewed to the right, or with heavy tails."""
    draws = {"normal": rng.normal, "skewed": rng.exponential, "heavy": lambda size: rng.standard_t(3, size)}
    return draws[kind](size=count) - (kind == "skewed")


def test_an_interval_is_the_hull_of_student_s_t_and_of_the_studentised_bootstrap():
    rng = np.random.default_rng(2)
    for kind in ("normal", "skewed", "heavy"):
        values = sample(kind, 12, rng)
        names = [f"p{i:02d}" for i in range(12)]
        estimate = estimate_mean(values, names)
        student = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
        draws = values[rng.integers(0, 12, (20_000, 12))]
        ratios = (draws.mean(1) - values.mean()) / (draws.std(1, ddof=1) / 12**0.5)
        high, low = values.mean() - np.quantile(ratios, [0.025, 0.975]) * stats.sem(values)
        interval = estimate.interval()
        assert interval.low == pytest.approx(min(student[0], low), abs=0.15 * stats.sem(values))
        assert interval.high == pytest.approx(max(student[1], high), abs=0.15 * stats.sem(values))
        assert interval.low <= student[0] + 1e-12
        assert interval.high >= student[1] - 1e-12


def test_an_interval_holds_a_skewed_effect_more_often_than_student_s_t_alone():
    rng, names, hits = np.random.default_rng(0), [f"p{i}" for i in range(8)], np.zeros(2)
    for _ in range(400):
        values = sample("skewed", 8, rng)
        interval = estimate_mean(values, names).interval()
        low, high = stats.t.interval(0.95, 7, loc=values.mean(), scale=stats.sem(values))
        hits += [interval.low <= 0 <= interval.high, low <= 0 <= high]
    assert hits[0] / 400 >= 0.92
    assert hits[1] / 400 < 0.92


def test_the_p_value_is_the_level_at_which_the_interval_ends():
    rng, names = np.random.default_rng(4), [f"p{i:02d}" for i in range(24)]
    for kind in ("normal", "skewed", "heavy"):
        estimate = estimate_mean(sample(kind, 24, rng) + 0.4, names)
        for null in (-0.3, 0.0, 0.2):
            p = estimate.p_value(null)
            wide, narrow = estimate.interval(1 - p * 0.9), estimate.interval(min(1 - p * 1.1, 1 - 1e-9))
            assert wide.low <= null <= wide.high
            assert p > 0.9 or not narrow.low <= null <= narrow.high


def test_an_effect_without_spread_is_certain():
    constant = estimate_mean(np.full(16, 0.25), [f"p{i // 2}" for i in range(16)])
    assert constant.interval() == Interval(0.25, 0.25, 0.25)
    assert (constant.p_value(0.25), constant.p_value(0.0)) == (1.0, 0.0)
    rare = estimate_mean(np.array([1.0] + [0.0] * 15), [f"p{i // 2}" for i in range(16)])
    assert -0.5 < rare.interval().low < 0 < rare.interval().high < 1.5
    for count in (2, 3, 4):  # most draws are of prompts that are all alike
        few = estimate_mean(np.array([0.3, 0.5, 0.7, 0.1])[:count], list("abcd")[:count]).interval()
        assert few.high - few.low < 20


def test_labels_shuffled_at_random_give_no_effect():
    """Whatever the law of the differences, with random signs no more than one interval of twenty leaves out 0."""
    rng, names = np.random.default_rng(7), [f"p{i // 2}" for i in range(24)]
    for kind in ("normal", "skewed", "heavy"):
        differences = sample(kind, 12, rng).repeat(2) + 0.3 * rng.normal(size=24) + 1
        alarms = 0
        for _ in range(200):
            signs = rng.choice([-1.0, 1.0], 12).repeat(2)
            alarms += paired_effect(np.zeros(24), signs * differences, names).direction != "unclear"
        assert alarms / 600 <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_the_difference_of_independent_means_is_welch_s():
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 1, 20), rng.normal(0, 3, 9)
    difference = estimate_difference(
        estimate_mean(first, [f"a{i:02d}" for i in range(20)]),
        estimate_mean(second, [f"b{i}" for i in range(9)]),
    )
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert difference.mean / difference.error == pytest.approx(welch.statistic)
    assert difference.freedom == pytest.approx(welch.df)
    assert difference.p_value() >= welch.pvalue - 1e-12


def test_holm_by_hand():
    assert adjust_p_values({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert adjust_p_values({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert adjust_p_values({}) == {}


def test_of_many_axes_without_an_effect_none_is_called_in_nineteen_cases_of_twenty():
    rng, false_calls = np.random.default_rng(0), 0
    for _ in range(2000):
        p_values = {str(k): p for k, p in enumerate(rng.uniform(size=9))}
        false_calls += min(adjust_p_values(p_values).values()) < 0.05
    assert 0.035 <= false_calls / 2000 <= 0.065
