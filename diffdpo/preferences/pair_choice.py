"""Which pair a listener hears next: one whose vote removes most uncertainty, and a share of uniform choices.

Songs have a utility each, with a normal prior, and votes are Bradley and Terry's. Laplace's approximation makes the
posterior normal; the next pair is one whose difference of utilities loses most posterior variance by a vote. The
variance alone would prefer songs far apart, whose votes are foreseeable and teach little: in simulation it ranks
worse than uniform choice. A share of the pairs is drawn uniformly, so that evaluations on those alone stay
unbiased. Which song comes first is balanced for every song and every listener.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diffdpo.preferences.bradley_terry import win_probability

MIN_UNIFORM_SHARE = 0.2
MAX_STEPS = 50
VoteTarget = tuple[int, int, float]
"""Indices of the first and the second song, and 1 where the first is preferred, 0.5 for a tie, 0 for the second."""
PairIndices = Int[np.ndarray, "pair 2"]


@dataclass(frozen=True, kw_only=True)
class PairChoice:
    """How the next pair is chosen."""

    uniform_share: float = 0.25
    """Share of pairs that are drawn uniformly; 0.2 or more."""
    prior_deviation: float = 1.5
    """Standard deviation of the utilities before any vote, in logits."""
    shortlist: int = 8
    """The best pairs, of which one is drawn: listeners who answer at the same time hear different pairs."""

    def __post_init__(self) -> None:
        if not MIN_UNIFORM_SHARE <= self.uniform_share <= 1:
            raise ValueError(
                f"uniform_share must be in [{MIN_UNIFORM_SHARE:g}, 1], got {self.uniform_share}: with less, what "
                "is measured on the votes is biased"
            )
        if not 0 < self.prior_deviation < np.inf:
            raise ValueError(f"prior_deviation must be a positive number, got {self.prior_deviation}")
        if self.shortlist < 1:
            raise ValueError(f"shortlist must be at least 1, got {self.shortlist}")


@dataclass(frozen=True, eq=False)
class UtilityPosterior:
    """A normal approximation of what votes say about the utilities of songs."""

    mean: Float[np.ndarray, " song"]
    covariance: Float[np.ndarray, "song song"]

    def variance(self, pairs: PairIndices) -> Float[np.ndarray, " pair"]:
        """Variance of the difference of the utilities of each two songs."""
        first, second = pairs[:, 0], pairs[:, 1]
        spread = self.covariance.diagonal()
        return spread[first] + spread[second] - 2 * self.covariance[first, second]

    def removable_variance(self, pairs: PairIndices) -> Float[np.ndarray, " pair"]:
        """The part of the variance of each difference that a vote on the pair is expected to remove.

        With the variance v of the difference and p the predicted share of votes for the first, w = p (1 - p) is
        what a vote adds to the precision, and w v² / (1 + w v) is removed.
        """
        variance = self.variance(pairs)
        margins = self.mean[pairs[:, 0]] - self.mean[pairs[:, 1]]
        probability = win_probability(margins / np.sqrt(1 + np.pi / 8 * variance))
        weight = probability * (1 - probability)
        return weight * variance**2 / (1 + weight * variance)

    def after(self, vote: VoteTarget) -> "UtilityPosterior":
        """The posterior after one more vote, without a new fit: one step of Newton's method from the old mean.

        Takes a time of order songs². A new fit now and then (`fit_utilities`) removes what such steps leave.
        """
        first, second, target = vote
        direction = self.covariance[:, first] - self.covariance[:, second]
        (probability,) = win_probability(self.mean[[first]] - self.mean[[second]])
        curvature = probability * (1 - probability)
        gain = direction / (1 + curvature * (direction[first] - direction[second]))
        covariance = self.covariance - curvature * np.outer(gain, direction)
        return UtilityPosterior(self.mean + (target - probability) * gain, covariance)


def fit_utilities(songs: int, answers: Sequence[VoteTarget], prior_deviation: float) -> UtilityPosterior:
    """Laplace's approximation of the posterior of utilities given votes: the mode, and the inverse curvature there.

    The prior is normal around zero, so that the scale and the origin of the utilities are determined, also for
    songs without votes.
    """
    rows = np.array(answers, np.float64).reshape(-1, 3)
    first, second, target = rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2]
    precision = 1 / prior_deviation**2
    mean = np.zeros(songs)
    for _ in range(MAX_STEPS):
        probability = win_probability(mean[first] - mean[second])
        error = probability - target
        slope = precision * mean
        slope += np.bincount(first, error, songs) - np.bincount(second, error, songs)
        curvature = _curvature(songs, first, second, probability * (1 - probability), precision)
        step = np.linalg.solve(curvature, slope)
        mean = mean - step / max(1.0, np.abs(step).max(initial=0) / 2)
        if np.abs(step).max(initial=0) < 1e-6:
            break
    probability = win_probability(mean[first] - mean[second])
    curvature = _curvature(songs, first, second, probability * (1 - probability), precision)
    return UtilityPosterior(mean, np.linalg.inv(curvature))


def _curvature(
    songs: int,
    first: Int[np.ndarray, " vote"],
    second: Int[np.ndarray, " vote"],
    weights: Float[np.ndarray, " vote"],
    precision: float,
) -> Float[np.ndarray, "song song"]:
    """The matrix of second derivatives of minus the log-posterior."""
    places = np.concatenate([first * songs + second, second * songs + first])
    sums = np.bincount(places, np.tile(weights, 2), songs * songs).astype(np.float64)  # of no vote: integers
    matrix = -sums.reshape(songs, songs)
    matrix[np.diag_indices(songs)] = precision - matrix.sum(1)
    return matrix


def next_pair(
    pairs: PairIndices,
    answers: Sequence[VoteTarget],
    excluded: Collection[int],
    rng: np.random.Generator,
    cfg: PairChoice,
    *,
    posterior: UtilityPosterior | None = None,
) -> int:
    """The index of the pair to be heard next.

    `pairs` are the songs of every pair, `answers` all votes of all listeners, `excluded` indices of pairs that this
    listener answered or was shown already. `posterior` is that of the answers if the caller keeps one (see
    `UtilityPosterior.after`); otherwise it is fitted here. ValueError if every pair is excluded.
    """
    candidates = np.setdiff1d(np.arange(len(pairs)), list(excluded))
    if not len(candidates):
        raise ValueError("every pair is excluded")
    if rng.random() < cfg.uniform_share:
        return int(rng.choice(candidates))
    if posterior is None:
        songs = int(max(np.max(pairs), max((max(vote[:2]) for vote in answers), default=0))) + 1
        posterior = fit_utilities(songs, answers, cfg.prior_deviation)
    gains = posterior.removable_variance(pairs[candidates])
    order = rng.permutation(len(candidates))  # pairs that are equally good are equally likely
    count = min(cfg.shortlist, len(candidates))
    best = np.argpartition(-gains[order], count - 1)[:count]
    return int(candidates[order[rng.choice(best)]])


def side_balance(presentations: Sequence[tuple[int, int]], songs: int) -> Int[np.ndarray, " song"]:
    """For every song how often it was first minus how often it was second."""
    rows = np.array(presentations, np.int64).reshape(-1, 2)
    return np.bincount(rows[:, 0], minlength=songs) - np.bincount(rows[:, 1], minlength=songs)


def choose_sides(
    pair: tuple[int, int],
    balance: Int[np.ndarray, " song"],
    rater_balance: Int[np.ndarray, " song"],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """The two songs of a pair in the order of presentation, first and second.

    First comes the song that this listener had first less often; if both had so alike, the one that all listeners
    had first less often; else chance decides. The arrays are from `side_balance`.
    """
    first, second = pair
    for counts in (rater_balance, balance):
        if counts[first] != counts[second]:
            return (first, second) if counts[first] < counts[second] else (second, first)
    return (first, second) if rng.random() < 0.5 else (second, first)
