"""The model of Davidson (1970): Bradley and Terry's with ties, and how it is fitted.

P(first) : P(tie) : P(second) = exp(d / 2) : nu : exp(-d / 2), where d is the difference of utilities. With nu = 0
it is Bradley and Terry's, and a tie then counts as half a win. The loss is convex in d.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

STEPS, TOLERANCE = 100, 1e-9
NU_RANGE = (1e-6, 1e3)

Column = Float[np.ndarray, " pair"]


class LossTerms(NamedTuple):
    """The loss of each pair, and its first and second derivative by the margin."""

    loss: Column
    slope: Column
    curvature: Column


def davidson_terms(margins: Column, targets: Column, nu: float) -> LossTerms:
    """Minus the log-likelihood of each pair, less the constant of ties; `targets` is 1 where the first wins, 0.5
    for a tie."""
    size = np.abs(margins) / 2
    once, twice = np.exp(-size), np.exp(-2 * size)
    total = 1 + twice + nu * once
    loss = size + np.log(total) - (targets - 0.5) * margins
    slope = np.sign(margins) * (1 - twice) / 2 / total - (targets - 0.5)
    curvature = (twice + nu * (once + once * twice) / 4) / total**2
    return LossTerms(loss, slope, curvature)


def tie_probability(margins: Column, nu: float) -> Column:
    """How likely each pair is a tie."""
    once = np.exp(-np.abs(margins) / 2)
    return nu * once / (1 + once**2 + nu * once)


def fit_davidson(
    differences: Float[np.ndarray, "pair feature"],
    targets: Column,
    counts: Column,
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
    for _ in range(STEPS):
        gradient = x.T @ (counts * terms.slope) + l2 * weights
        if np.abs(gradient).max(initial=0) <= TOLERANCE * max(1.0, counts.sum()):
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


def fit_nu(margins: Column, ties: Bool[np.ndarray, " pair"], counts: Column) -> float:
    """The nu at which the observed share of ties is the expected one, within NU_RANGE; 0 without ties."""
    observed = float(counts[ties].sum())
    if not observed:
        return 0.0
    low, high = np.log(NU_RANGE)
    for _ in range(60):
        middle = (low + high) / 2
        expected = float(counts @ tie_probability(margins, float(np.exp(middle))))
        low, high = (low, middle) if expected > observed else (middle, high)
    return float(np.exp((low + high) / 2))
