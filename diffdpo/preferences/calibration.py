"""Calibration: from margins to probabilities, and what is left when systems are newer than the votes.

A temperature has one parameter; isotonic regression has as many as the data ask for, and is kept symmetric, so that
exchanging two songs gives one minus the probability. Offsets of systems repair a reward for songs of models that it
was not fitted on: a few new votes say how much each system is over- or underrated.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from diffdpo.preferences.bradley_terry import PairColumn, log_loss, win_probability

BINS = 10


def fit_isotonic(margins: PairColumn, targets: PairColumn, counts: PairColumn) -> Float[np.ndarray, "2 knot"]:
    """Knots of a rising, symmetric map from margin to probability: margins in the first row, probabilities in the
    second; straight lines between them, by pooling adjacent violators."""
    x = np.concatenate([margins, -margins])
    y = np.concatenate([targets, 1 - targets])
    w = np.concatenate([counts, counts])
    order = np.argsort(x, kind="stable")
    blocks: list[list[float]] = []  # weight, sum of targets, sum of margins
    for place in order:
        blocks.append([w[place], w[place] * y[place], w[place] * x[place]])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    table = np.array([[margin / weight, total / weight] for weight, total, margin in blocks if weight > 0])
    return table.T if len(table) else np.zeros((2, 0))


def isotonic_probability(
    margins: Float[np.ndarray, "*pair"], knots: Float[np.ndarray, "2 knot"]
) -> Float[np.ndarray, "*pair"]:
    """Probabilities between the knots; beyond the last ones they stay."""
    values = np.interp(margins, knots[0], knots[1])
    mirror_values = np.interp(-np.asarray(margins), knots[0], knots[1])
    return np.asarray((values + 1 - mirror_values) / 2)


def calibration_error(probabilities: PairColumn, targets: PairColumn, bins: int = BINS) -> float:
    """Expected calibration error: mean distance of probability and outcome over bins of equal width.

    Of each pair the side that is the more likely counts, so bins reach from 0.5 to 1.
    """
    if not len(probabilities):
        return float("nan")
    upper = probabilities >= 0.5
    confidence = np.where(upper, probabilities, 1 - probabilities)
    outcome = np.where(upper, targets, 1 - targets)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, outcome)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(confidence))


def fit_offsets(
    margins: PairColumn,
    first_systems: Sequence[str],
    second_systems: Sequence[str],
    targets: PairColumn,
    *,
    l2: float = 1.0,
    pinned_system: str = "",
) -> dict[str, float]:
    """How much each system is overrated: P(first) = sigmoid((r_a - offset_a) - (r_b - offset_b)).

    `margins` are r_a - r_b of frozen, calibrated utilities. One system is pinned at 0, by default the first by
    name; the penalty `l2` keeps the others near it. {} for fewer than two systems.
    """
    systems = sorted({*first_systems, *second_systems})
    anchor_system = pinned_system or (systems[0] if systems else "")
    names = [name for name in systems if name != anchor_system]
    if not names:
        return dict.fromkeys(systems, 0.0)
    column = {name: place for place, name in enumerate(names)}
    design = np.zeros((len(margins), len(names)))
    for row, (first, second) in enumerate(zip(first_systems, second_systems, strict=True)):
        if first in column:
            design[row, column[first]] -= 1
        if second in column:
            design[row, column[second]] += 1
    offsets = fit_with_intercepts(design, margins, targets, l2)
    return dict.fromkeys(systems, 0.0) | dict(zip(names, offsets.tolist(), strict=True))


def fit_with_intercepts(
    design: Float[np.ndarray, "pair column"], margins: PairColumn, targets: PairColumn, l2: float
) -> Float[np.ndarray, " column"]:
    """The weights of a logistic regression whose margins have a fixed part, with a penalty, by Newton's method."""
    weights = np.zeros(design.shape[1])

    def loss(w: np.ndarray) -> float:
        return float(log_loss(margins + design @ w, targets).sum() + l2 / 2 * (w @ w))

    for _ in range(100):
        probability = win_probability(margins + design @ weights)
        gradient = design.T @ (probability - targets) + l2 * weights
        if np.abs(gradient).max() < 1e-9 * max(1, len(margins)):
            break
        spread = probability * (1 - probability)
        step = np.linalg.solve((design.T * spread) @ design + l2 * np.eye(len(weights)), gradient)
        size, level = 1.0, loss(weights)
        while size > 1e-8 and loss(weights - size * step) > level - 1e-4 * size * (gradient @ step):
            size /= 2
        weights = weights - size * step
    return weights


def offset_margins(
    margins: PairColumn,
    offsets: Mapping[str, float],
    first_systems: Sequence[str],
    second_systems: Sequence[str],
) -> PairColumn:
    """Margins less the offsets of the two systems; an unknown system has none."""
    first, second = (
        np.array([offsets.get(name, 0.0) for name in names]) for names in (first_systems, second_systems)
    )
    return margins - (first - second)


def fit_slopes(
    margins: PairColumn, targets: PairColumn, raters: Sequence[str], spread: float = 0.5
) -> dict[str, float]:
    """How much each listener agrees with the margins: the slope a in P = sigmoid(a · margin), most likely under a
    normal prior around 1.

    Near 0 for a listener who answers at random, negative for one who answers the opposite. `margins` must come from
    a fit that did not see the votes.
    """
    names = np.asarray(raters)
    slopes = {}
    for name in np.unique(names):
        inside = names == name
        design = margins[inside][:, None]
        change = fit_with_intercepts(design, margins[inside], targets[inside], 1 / spread**2)
        slopes[str(name)] = float(1 + change[0])
    return slopes
