"""The model of Bradley and Terry (1952): who wins follows from one number of each of the two.

The number, the utility, is linear in features: P(first over second) = sigmoid(w · (features of first - of second)).
There is no intercept, so that exchanging the two gives one minus the probability. The loss is convex, and with a
penalty on the weights it has a single minimum, which Newton's method finds to rounding.
"""

import numpy as np
from jaxtyping import Float, Int, Shaped

STEPS = 100
TOLERANCE = 1e-9
"""Largest element of the gradient, as a share of the number of pairs, at which the minimum counts as reached."""
TEMPERATURES = (0.02, 50.0)
"""The range of temperatures: margins that are never wrong ask for 0, margins that say nothing for infinity."""

PairRows = Float[np.ndarray, "pair feature"]
PairColumn = Float[np.ndarray, " pair"]


def log_loss(margins: PairColumn, targets: PairColumn) -> PairColumn:
    """Minus the log-likelihood of each pair: `targets` is 1 where the first wins, 0.5 for a tie."""
    return np.logaddexp(0.0, -margins) + (1.0 - targets) * margins


def win_probability(margins: Float[np.ndarray, "*pair"]) -> Float[np.ndarray, "*pair"]:
    """The sigmoid of margins, without overflow."""
    return np.exp(-np.logaddexp(0.0, -margins))


def fit_weights(
    differences: PairRows, *, l2: float, targets: PairColumn | None = None, counts: PairColumn | None = None
) -> Float[np.ndarray, " feature"]:
    """The weights at the minimum of sum(counts · log_loss) + l2 / 2 · |weights|².

    `differences` are the features of the first minus those of the second. `targets` is 1 by default, and so is
    `counts`, how often each pair was seen. ValueError without a penalty: pairs that a plane divides would have no
    minimum.
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}")
    x = np.asarray(differences, np.float64)
    targets = np.ones(len(x)) if targets is None else np.asarray(targets, np.float64)
    counts = np.ones(len(x)) if counts is None else np.asarray(counts, np.float64)
    weights = np.zeros(x.shape[1])

    def loss(w: np.ndarray) -> float:
        return float(counts @ log_loss(x @ w, targets) + l2 / 2 * (w @ w))

    for _ in range(STEPS):
        slope = gradient(weights, x, targets, counts, l2)
        if np.abs(slope).max(initial=0) <= TOLERANCE * max(1.0, counts.sum()):
            break
        probability = win_probability(x @ weights)
        curvature = (x.T * (counts * probability * (1 - probability))) @ x + l2 * np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        size, level = 1.0, loss(weights)
        while size > 1e-8 and loss(weights - size * step) > level - 1e-4 * size * (slope @ step):
            size /= 2
        weights = weights - size * step
    return weights


def gradient(
    weights: Float[np.ndarray, " feature"],
    differences: PairRows,
    targets: PairColumn,
    counts: PairColumn,
    l2: float,
) -> Float[np.ndarray, " feature"]:
    """The gradient of the loss that `fit_weights` minimises."""
    return differences.T @ (counts * (win_probability(differences @ weights) - targets)) + l2 * weights


def calibrate_temperature(margins: PairColumn, targets: PairColumn | None = None) -> float:
    """The temperature T at which sigmoid(margin / T) is most likely.

    Give margins of songs that the weights were not fitted to: on those they were fitted to, T would be near 1
    however wrong the probabilities are elsewhere. Within TEMPERATURES.
    """
    low, high = TEMPERATURES
    scale = max(float(np.abs(margins).mean()), 1e-12)
    (sharpness,) = fit_weights(np.asarray(margins)[:, None] / scale, l2=1e-6, targets=targets)
    return float(np.clip(scale / max(sharpness, 1e-12), low, high))


def group_folds(groups: Shaped[np.ndarray, " pair"], folds: int, seed: int) -> Int[np.ndarray, " pair"]:
    """A fold for every pair; pairs of one group, such as a song or a package, are in one fold."""
    names, member = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (np.argsort(order) % folds)[member]


def bootstrap_counts(groups: Shaped[np.ndarray, " pair"], rng: np.random.Generator) -> PairColumn:
    """How often each pair is in a sample of groups drawn with replacement."""
    names, member = np.unique(groups, return_inverse=True)
    draws = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
    return draws[member].astype(np.float64)
