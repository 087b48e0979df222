"""Bootstrap over prompts against what theory says."""

import numpy as np
import pytest

from diffdpo.statistics import paired_effect


def test_the_effect_is_the_mean_difference_and_the_win_rate_counts_ties_half():
    effect = paired_effect(
        np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 7.0]), ["a", "b", "c", "d"]
    )
    assert effect.mean == pytest.approx(0.75)
    assert effect.win_rate == pytest.approx(2.5 / 4)
    assert effect.standardised == pytest.approx(0.75 / np.std([1, 2, 3, 4], ddof=1))
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
