"""The model of Davidson (1970): Bradley and Terry's with ties, and how it is fitted.

P(first) : P(tie) : P(second) = exp(d / 2) : nu : exp(-d / 2), where d is the difference of utilities. With nu = 0
it is Bradley and Terry's, and a tie then counts as half a win. The loss is convex in d.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from diffdpo.preferences.bradley_terry import PairColumn

MAX_STEPS, SLOPE_TOLERANCE = 100, 1e-9
NU_RANGE = (1e-6, 1e3)


class LossTerms(NamedTuple):
    """The loss of each pair, and its first and second derivative by the margin."""

    loss: PairColumn
    slope: PairColumn
    curvature: PairColumn


def davidson_terms(margins: PairColumn, targets: PairColumn, nu: float) -> LossTerms:
    """Minus the log-likelihood of each pair, less the constant of ties; `targets` is 1 where the first wins, 0.5
    for a tie."""
    size = np.abs(margins) / 2
    root, square = np.exp(-size), np.exp(-2 * size)
    total = 1 + square + nu * root
    loss = size + np.log(total) - (targets - 0.5) * margins
    slope = np.sign(margins) * (1 - square) / 2 / total - (targets - 0.5)
    curvature = (square + nu * (root + root * square) / 4) / total**2
    return LossTerms(loss, slope, curvature)


def tie_probability(margins: PairColumn, nu: float) -> PairColumn:
    """How likely each pair is a tie."""
    root = np.exp(-np.abs(margins) / 2)
    return nu * root / (1 + root**2 + nu * root)


def fit_davidson(
    differences: Float[np.ndarray, "pair feature"],
    targets: PairColumn,
    counts: PairColumn,
    *,
    l2: float,
    nu: float = 0.0,
) -> Float[np.ndarray, " feature"]:
    """The weights w at the minimum of sum(counts · loss(differences · w)) + l2 / 2 · |w|², by Newton's method.

    ValueError without a penalty, since pairs that a plane divides would have no minimum.
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}")
    x = np.asarray(differences, np.float64)
    weights = np.zeros(x.shape[1])
    terms, level = davidson_terms(x @ weights, targets, nu), np.inf
    level = float(counts @ terms.loss)
    for _ in range(MAX_STEPS):
        gradient = x.T @ (counts * terms.slope) + l2 * weights
        if np.abs(gradient).max(initial=0) <= SLOPE_TOLERANCE * max(1.0, counts.sum()):
            break
        curvature = (x.T * (counts * terms.curvature)) @ x + l2 * np.eye(len(weights))
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while size > 1e-8:
            trial = weights - size * step
            terms = davidson_terms(x @ trial, targets, nu)
            trial_level = float(counts @ terms.loss + l2 / 2 * (trial @ trial))
            if trial_level <= level - 1e-4 * size * (gradient @ step):
                break
            size /= 2
        weights, level = trial, trial_level
    return weights


def fit_nu(margins: PairColumn, ties: Bool[np.ndarray, " pair"], counts: PairColumn) -> float:
    """The nu at which the observed share of ties is the expected one, within NU_RANGE; 0 without ties."""
    tie_count = float(counts[ties].sum())
    if not tie_count:
        return 0.0
    low, high = np.log(NU_RANGE)
    for _ in range(60):
        middle = (low + high) / 2
        model_count = float(counts @ tie_probability(margins, float(np.exp(middle))))
        low, high = (low, middle) if model_count > tie_count else (middle, high)
    return float(np.exp((low + high) / 2))
