"""The ratio of two means over the same clusters, with its interval and test."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from diffdpo.statistics import Interval, MeanEstimate, estimate_mean


def estimate_ratio(
    numerator: Float[np.ndarray, " sample"],
    denominator: Float[np.ndarray, " sample"],
    clusters: Sequence[str],
    *,
    level: float = 0.95,
) -> Interval:
    """The ratio of the means of two measures that are not below zero.

    The interval holds every ratio r for which the mean of numerator - r · denominator is not told from zero by the
    interval of `MeanEstimate` (Fieller's construction), and so covers as that does or a little more. It may be
    open: 0 below, infinite above. NaN where the denominator is zero throughout.
    """
    if denominator.mean() == 0:
        return Interval(math.nan, 0.0, math.inf)
    value = float(numerator.mean() / denominator.mean())

    def bounds(ratio: float) -> Interval:
        return _difference(numerator, denominator, clusters, ratio).interval(level)

    top = 1e3 * max(value, 1.0)
    low = 0.0 if bounds(0.0).low <= 0 else _bisect(lambda r: bounds(r).low > 0, 0.0, value)
    high = math.inf if bounds(top).high >= 0 else _bisect(lambda r: bounds(r).high >= 0, value, top)
    return Interval(value, low, high)


def ratio_p_value(
    numerator: Float[np.ndarray, " sample"],
    denominator: Float[np.ndarray, " sample"],
    clusters: Sequence[str],
    null: float,
) -> float:
    """Two-sided p-value of the hypothesis that the ratio of the means is `null`."""
    return _difference(numerator, denominator, clusters, null).p_value()


def _difference(
    numerator: Float[np.ndarray, " sample"],
    denominator: Float[np.ndarray, " sample"],
    clusters: Sequence[str],
    ratio: float,
) -> MeanEstimate:
    return estimate_mean(numerator - ratio * denominator, clusters)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds at `low` and not at `high` ends, to a thousandth."""
    while high - low > 1e-3 * max(high, 1e-3):
        middle = (low + high) / 2 if high < 4 * max(low, 1e-3) else math.sqrt(max(low, 1e-6) * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2
