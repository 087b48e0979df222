"""Whether a retrained reward model takes the place of the present one: both on votes that neither was fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffdpo.preferences.bradley_terry import log_loss
from diffdpo.statistics import MIN_CLUSTERS, estimate_mean

MIN_VOTES = 100
"""Votes of a held-out window from which on it decides."""


@dataclass(frozen=True)
class Promotion:
    """A comparison of two reward models."""

    is_promoted: bool
    votes: int
    gain: float
    """Mean log-loss of the present model minus that of the candidate, in nats a vote."""
    low: float
    high: float
    """The 95 % interval of the gain, over raters where there are enough of them, otherwise over votes."""
    better: int
    """Decisive votes that the candidate alone foresees."""
    worse: int
    """Decisive votes that the present model alone foresees."""
    p_value: float
    """Two-sided and exact, of the hypothesis that `better` and `worse` are equally likely."""


def compare_models(
    present: Float[np.ndarray, " vote"],
    candidate: Float[np.ndarray, " vote"],
    targets: Float[np.ndarray, " vote"],
    raters: Sequence[str],
) -> Promotion:
    """The comparison of two models by their margins; the candidate is promoted if the interval lies above zero.

    Fewer votes than MIN_VOTES promote nothing.
    """
    from scipy.stats import binomtest

    count = len(targets)
    if not count:
        return Promotion(False, 0, 0.0, -np.inf, np.inf, 0, 0, 1.0)
    gains = np.round(log_loss(present, targets) - log_loss(candidate, targets), 9)  # less is rounding
    clusters = raters if len(set(raters)) >= MIN_CLUSTERS else [str(place) for place in range(count)]
    estimate = estimate_mean(gains, clusters)
    interval = estimate.interval()
    sides = 2 * targets - 1
    right, right_candidate = present * sides > 0, candidate * sides > 0
    better, worse = int((right_candidate & ~right).sum()), int((right & ~right_candidate).sum())
    p_value = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    is_promoted = bool(count >= MIN_VOTES and interval.low > 0)
    return Promotion(is_promoted, count, estimate.mean, interval.low, interval.high, better, worse, p_value)
