"""Tastes of single listeners: a few directions in which tastes differ, and each listener's weights on them.

The margin of a vote is x · Bᵀ w: differences of features x, K reward bases B that all listeners share, and weights
w of the listener. The first base is the pooled model, fitted to everybody's votes, and the mean of the weights is 1
on it and 0 on the others: a listener without votes has the pooled model exactly. Weights are normal around that
mean, so that a few votes of a new listener decide what they can, and the prior the rest.

The time of a fit grows with the third power of bases times features: bring embeddings to some 16 to 64 principal
components first.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from diffdpo.checks import check_range
from diffdpo.preferences.bradley_terry import fit_weights, win_probability
from diffdpo.preferences.pair_choice import PairChoice

STEPS_OF_WEIGHTS = 50
JITTER = 1e-6
Differences = Float[np.ndarray, "vote feature"]
VoteColumn = Float[np.ndarray, " vote"]


@dataclass(frozen=True, kw_only=True)
class TasteFit:
    """How bases are fitted to pooled votes."""

    bases: int = 8
    """Bases, the pooled model among them; fewer where there are fewer raters or features."""
    l2: float = 5.0
    """Penalty on the pooled model's weights, and on those of the other bases."""
    rounds: int = 10
    """Rounds of weights of raters, their covariance, and bases in turn."""

    def __post_init__(self) -> None:
        check_range(self, "bases", "rounds", low=1)
        check_range(self, "l2", above=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tastes:
    """Reward bases, and how the weights of listeners are distributed."""

    bases: Float[np.ndarray, "base feature"]
    mean: Float[np.ndarray, " base"]
    covariance: Float[np.ndarray, "base base"]

    @property
    def pooled(self) -> Float[np.ndarray, " feature"]:
        """The weights of features of a listener without votes."""
        return self.mean @ self.bases

    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """What a weight file holds of them."""
        return {"bases": self.bases, "mean": self.mean, "covariance": self.covariance}

    def listener(self, differences: Differences, targets: VoteColumn) -> "Listener":
        """A listener after some votes: the mode of the posterior, and the inverse of the curvature there.

        `differences` are the features of the first song minus those of the second; `targets` is 1 where the first
        was preferred, 0.5 for a tie.
        """
        root = np.linalg.cholesky(self.covariance + JITTER * np.eye(len(self.mean)))
        design = differences @ self.bases.T
        offset = design @ self.mean
        scores, curvature = _fit_around(design @ root, offset, targets, 1.0)
        return Listener(
            tastes=self,
            weights=self.mean + root @ scores,
            covariance=root @ np.linalg.inv(curvature) @ root.T,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Listener:
    """A listener's weights on the bases, with their posterior covariance."""

    tastes: Tastes
    weights: Float[np.ndarray, " base"]
    covariance: Float[np.ndarray, "base base"]

    @property
    def feature_weights(self) -> Float[np.ndarray, " feature"]:
        """The listener's weights of features: utilities of songs are features times these."""
        return self.weights @ self.tastes.bases

    def margin(self, differences: Differences) -> VoteColumn:
        """Difference of the utilities of each two songs."""
        return differences @ self.feature_weights

    def variance(self, differences: Differences) -> VoteColumn:
        """Posterior variance of the margins."""
        design = differences @ self.tastes.bases.T
        return np.einsum("nk,kl,nl->n", design, self.covariance, design)

    def probability(self, differences: Differences) -> VoteColumn:
        """How likely the listener prefers the first of each two songs; the mean over the posterior."""
        return win_probability(self.margin(differences) / np.sqrt(1 + np.pi / 8 * self.variance(differences)))

    def next_pair(
        self, differences: Differences, excluded: Collection[int], rng: np.random.Generator, cfg: PairChoice
    ) -> int:
        """The index of the pair whose vote removes most variance of its own margin; a share is drawn uniformly.

        ValueError if every pair is excluded.
        """
        candidates = np.setdiff1d(np.arange(len(differences)), list(excluded))
        if not len(candidates):
            raise ValueError("every pair is excluded")
        if rng.random() < cfg.uniform_share:
            return int(rng.choice(candidates))
        variance, probability = (
            values(differences[candidates]) for values in (self.variance, self.probability)
        )
        weight = probability * (1 - probability)
        gains = weight * variance**2 / (1 + weight * variance)
        order = rng.permutation(len(candidates))
        best = order[np.argsort(-gains[order], kind="stable")[: cfg.shortlist]]
        return int(candidates[rng.choice(best)])


def read_tastes(arrays: Mapping[str, Any]) -> Tastes:
    """The tastes among the arrays of a weight file. KeyError or ValueError for what is none."""
    bases, mean, covariance = (np.asarray(arrays[key], np.float64) for key in ("bases", "mean", "covariance"))
    if bases.ndim != 2 or mean.shape != bases.shape[:1] or covariance.shape != 2 * mean.shape:
        raise ValueError(f"bases {bases.shape}, mean {mean.shape}, covariance {covariance.shape} do not fit")
    return Tastes(bases=bases, mean=mean, covariance=covariance)


def fit_tastes(
    differences: Differences, rater: Int[np.ndarray, " vote"], targets: VoteColumn, cfg: TasteFit
) -> Tastes:
    """Reward bases and the distribution of weights, from the votes of many raters.

    The pooled model is fitted first. Where raters differ from it, by votes of their own around it, gives the other
    bases to begin with; then weights, covariance and bases are improved in turn (EM with Laplace's approximation).
    """
    common = fit_weights(differences, l2=cfg.l2, targets=targets)
    number, member = np.unique(rater, return_inverse=True)
    count = min(cfg.bases, len(number), differences.shape[1])
    votes_of = [np.flatnonzero(member == place) for place in range(len(number))]
    deviations = _deviations(differences, targets, votes_of, common, cfg.l2)
    directions = np.linalg.svd(deviations, full_matrices=False)[2][: count - 1]
    mean = np.eye(count)[0]
    tastes = Tastes(
        bases=np.concatenate([common[None], directions]),
        mean=mean,
        covariance=np.diag(np.concatenate([[0.1], np.full(count - 1, (common @ common) / max(1, count))])),
    )
    for _ in range(cfg.rounds):
        listeners = [tastes.listener(differences[votes], targets[votes]) for votes in votes_of]
        weights = np.stack([listener.weights for listener in listeners])
        spread = np.mean([listener.covariance for listener in listeners], 0)
        covariance = (weights - mean).T @ (weights - mean) / len(weights) + spread
        bases = _improve(tastes.bases, weights[member], differences, targets, cfg.l2)
        tastes = Tastes(bases=bases, mean=mean, covariance=covariance)
    return tastes


def _deviations(
    differences: Differences,
    targets: VoteColumn,
    votes_of: list[Int[np.ndarray, " _"]],
    common: Float[np.ndarray, " feature"],
    l2: float,
) -> Float[np.ndarray, "rater feature"]:
    """The weights of features of each rater minus the pooled ones, shrunk towards zero."""
    return np.stack(
        [
            _fit_around(differences[votes], differences[votes] @ common, targets[votes], l2)[0]
            for votes in votes_of
        ]
    )


def _improve(
    bases: Float[np.ndarray, "base feature"],
    weights: Float[np.ndarray, "vote base"],
    differences: Differences,
    targets: VoteColumn,
    l2: float,
) -> Float[np.ndarray, "base feature"]:
    """Better bases for given weights; the first one, the pooled model, stays."""
    count, features = bases.shape
    if count == 1:
        return bases
    design = (weights[:, 1:, None] * differences[:, None, :]).reshape(len(differences), -1)
    present = bases[1:].reshape(-1)
    offset = weights[:, 0] * (differences @ bases[0])
    # the penalty pulls towards the present bases, so that a round is a step
    step, _ = _fit_around(design, offset + design @ present, targets, l2)
    return np.concatenate([bases[:1], (present + step).reshape(count - 1, features)])


def _fit_around(
    design: Float[np.ndarray, "vote column"], offset: VoteColumn, targets: VoteColumn, l2: float
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, "column column"]]:
    """The most likely weights for margins offset + design · weights under a normal prior; the curvature there."""
    weights = np.zeros(design.shape[1])
    identity = l2 * np.eye(len(weights))
    curvature = identity
    for _ in range(STEPS_OF_WEIGHTS):
        margins = offset + design @ weights
        probability = np.exp(-np.logaddexp(0.0, -margins))
        slope = design.T @ (probability - targets) + l2 * weights
        curvature = (design.T * (probability * (1 - probability))) @ design + identity
        step = np.linalg.solve(curvature, slope)
        size = 1.0
        level = _objective(weights, design, offset, targets, l2)
        while size > 1e-4 and _objective(weights - size * step, design, offset, targets, l2) > level:
            size /= 2
        weights = weights - size * step
        if np.abs(step).max(initial=0) < 1e-8:
            break
    return weights, curvature


def _objective(
    weights: np.ndarray, design: np.ndarray, offset: np.ndarray, targets: np.ndarray, l2: float
) -> float:
    """Minus the log-posterior up to a constant."""
    margins = offset + design @ weights
    losses = np.logaddexp(0.0, -margins) + (1 - targets) * margins
    return float(losses.sum() + l2 / 2 * weights @ weights)
