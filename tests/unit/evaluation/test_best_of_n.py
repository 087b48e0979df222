"""Best-of-N against enumeration and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from diffdpo.errors import DataError
from diffdpo.evaluation.best_of_n import (
    best_of_n_kl,
    best_of_n_weights,
    equivalent_n,
    gain_curve,
    prompt_z,
    selection_scores,
)


def test_the_weights_are_those_of_all_subsets():
    rng = np.random.default_rng(0)
    selection, values = rng.normal(size=6), rng.normal(size=6)
    for n in range(1, 7):
        subsets = list(itertools.combinations(range(6), n))
        best = [values[max(subset, key=lambda k: selection[k])] for subset in subsets]
        assert best_of_n_weights(selection, n) @ values == pytest.approx(np.mean(best))


def test_equal_candidates_share_their_chances():
    np.testing.assert_allclose(best_of_n_weights(np.array([2.0, 1.0, 2.0]), 3), [0.5, 0, 0.5])
    np.testing.assert_allclose(best_of_n_weights(np.zeros(4), 2), [0.25] * 4)


def test_n_beyond_the_candidates_is_refused():
    with pytest.raises(DataError, match="from 1 to 4"):
        best_of_n_weights(np.zeros(4), 5)


def test_the_gain_of_the_value_itself_is_the_normal_order_statistic():
    """Candidates at the quantiles of a normal law, chosen by the value itself, against the integral."""
    values = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    curve = gain_curve(values, values, ["a"] * 400, largest=10)
    for n in (2, 4, 10):
        expected = integrate.quad(
            lambda x, n=n: x * n * stats.norm.cdf(x) ** (n - 1) * stats.norm.pdf(x), -9, 9
        )
        assert curve.gains[0, n - 1] == pytest.approx(expected[0], abs=0.02)
    assert curve.gains[0, 0] == pytest.approx(0)


def test_the_gain_of_a_selection_that_knows_nothing_is_zero():
    rng = np.random.default_rng(3)
    prompts = np.repeat([f"p{k}" for k in range(200)], 10).tolist()
    curve = gain_curve(rng.normal(size=2000), rng.normal(size=2000), prompts)
    interval = curve.estimate(10).interval()
    assert interval.low < 0 < interval.high


def test_selection_is_by_the_place_within_the_prompt():
    prompts = ["a", "b", "a", "b"]
    z = prompt_z(np.array([1.0, 100.0, 3.0, 300.0]), prompts)
    np.testing.assert_allclose(z, [-1, -1, 1, 1])
    np.testing.assert_allclose(prompt_z(np.full(4, 0.1), prompts), 0)
    scores = {axis: np.array([1.0, 5, 3, 1]) for axis in ("harmony.key", "harmony.tuning")}
    scores |= {axis: np.array([1.0, 5, 1, 1]) for axis in ("rhythm.pulse", "structure.form")}
    np.testing.assert_allclose(selection_scores(scores, prompts), [-0.5, 1, 0.5, -1])
    with pytest.raises(DataError, match=r"structure\.form"):
        selection_scores({k: v for k, v in scores.items() if k != "structure.form"}, prompts)


def test_the_kl_of_best_of_n():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    assert best_of_n_kl(64) == pytest.approx(math.log(64) - 63 / 64)


def world(prompts=24, candidates=10, seed=0):
    rng = np.random.default_rng(seed)
    names = np.repeat([f"p{k:02d}" for k in range(prompts)], candidates).tolist()
    values = rng.normal(size=prompts * candidates)
    return gain_curve(values, values, names), sorted(set(names))


def test_a_model_that_is_best_of_four_is_equivalent_to_four():
    curve, names = world()
    for n in (1, 2, 4, 9):
        found = equivalent_n(curve, curve.gains[:, n - 1], names)
        assert found.interval.value == pytest.approx(n)
        assert found.interval.low <= n + 1e-9
        assert found.interval.high >= n - 1e-9


def test_n_is_linear_between_whole_numbers():
    curve, names = world()
    halfway = (curve.gains[:, 1] + curve.gains[:, 2]) / 2
    assert equivalent_n(curve, halfway, names).interval.value == pytest.approx(2.5)


def test_beyond_the_candidates_n_is_above_and_without_a_gain_one():
    curve, names = world()
    above = equivalent_n(curve, curve.gains[:, 9] + 1, names)
    assert math.isinf(above.interval.value)
    assert above.text() == "above 10"
    below = equivalent_n(curve, -np.ones(24), names)
    assert (below.interval.value, below.interval.low, below.interval.high) == (1, 1, 1)
    part = equivalent_n(curve, curve.gains[:, 8] + np.random.default_rng(0).normal(0, 0.2, 24), names)
    assert part.text().endswith("to above 10)")


def test_other_prompts_than_the_candidates_are_independent_and_some_of_them_an_error():
    curve, names = world()
    rng = np.random.default_rng(1)
    change = curve.gains[:, 3].mean() + rng.normal(0, 0.3, 24)
    apart = equivalent_n(
        curve, change - change.mean() + curve.gains[:, 3].mean(), [f"q{k}" for k in range(24)]
    )
    assert apart.interval.value == pytest.approx(4)
    assert apart.interval.low < 4 < apart.interval.high
    with pytest.raises(DataError, match="share a part"):
        equivalent_n(curve, change, [*names[:12], *(f"q{k}" for k in range(12))])
