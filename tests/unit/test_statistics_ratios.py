"""Ratios of means against Fieller's closed form."""

import math

import numpy as np
import pytest
from scipy import stats

from diffdpo.statistics_ratios import estimate_ratio, ratio_p_value

NAMES = [f"p{k:02d}" for k in range(24)]


def fieller(numerator, denominator):
    """Student's t alone: roots of (a - r b)² = t² var(a - r b)."""
    t = stats.t.ppf(0.975, len(numerator) - 1) ** 2 / len(numerator)
    covariance = np.cov(numerator, denominator)
    a, b = numerator.mean(), denominator.mean()
    return np.sort(
        np.roots(
            [
                b * b - t * covariance[1, 1],
                -2 * (a * b - t * covariance[0, 1]),
                a * a - t * covariance[0, 0],
            ]
        )
    )


def test_the_interval_is_fieller_s_or_a_little_wider():
    rng = np.random.default_rng(0)
    denominator = rng.normal(4, 1, 24)
    numerator = 0.5 * denominator + rng.normal(0, 0.5, 24)
    ratio = estimate_ratio(numerator, denominator, NAMES)
    low, high = fieller(numerator, denominator)
    assert ratio.value == pytest.approx(numerator.mean() / denominator.mean())
    assert low * 0.97 <= ratio.low <= low + 0.001
    assert high - 0.001 <= ratio.high <= high * 1.03


def test_the_p_value_agrees_with_the_interval():
    rng = np.random.default_rng(1)
    numerator, denominator = rng.chisquare(2, (2, 24))
    ratio = estimate_ratio(numerator, denominator, NAMES)
    for null in (0.5 * ratio.low, ratio.value, 2 * ratio.high):
        inside = ratio.low <= null <= ratio.high
        assert (ratio_p_value(numerator, denominator, NAMES, null) > 0.05) == inside


def test_the_ratio_of_a_measure_to_itself_is_certain_and_to_nothing_is_none():
    values = np.random.default_rng(2).chisquare(2, 24)
    same = estimate_ratio(values, values, NAMES)
    assert (same.low, same.value, same.high) == pytest.approx((1, 1, 1), abs=0.002)
    nothing = estimate_ratio(values, np.zeros(24), NAMES)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0, math.inf)
    assert estimate_ratio(np.zeros(24), values, NAMES).value == 0


def test_a_ratio_of_one_prompt_is_open():
    ratio = estimate_ratio(np.array([1.0, 2.0]), np.array([2.0, 2.0]), ["a", "a"])
    assert (ratio.value, ratio.low, ratio.high) == (0.75, 0, math.inf)
