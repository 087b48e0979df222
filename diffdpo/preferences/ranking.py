"""A ranking from votes of listeners who differ: some are careless, some answer the reverse, some prefer a side.

Every song has a utility s. A listener r who hears song i first and song j second answers by the margin
d = a_r (s_i - s_j) + b_r, with a reliability a_r and a preference b_r for the first: by Davidson's model the three
answers first, second and tie have the odds exp(d/2), exp(-d/2) and ν. Reliability is 1 for the usual listener, 0
for one who votes at random, and below 0 for one who means the reverse, whose votes count the other way round.

What votes do not determine, priors do. The utilities of songs that are connected by votes have no origin: their
prior has mean 0, and only differences within such a component mean anything. Reliability and utility are determined
up to a factor: the prior of reliability has mean 1. Reversing all reliabilities and utilities explains votes as
well: the prior makes the mode in which most listeners mean what they say.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from diffdpo.checks import check_range
from diffdpo.preferences.bradley_terry import win_probability
from diffdpo.preferences.ranking_posterior import Curvature, RankingPosterior, invert_curvature

FIRST, TIE, SECOND = 1, 0, -1
"""Outcomes of a vote: the song presented first, a tie, the second."""
ITERATIONS = 2000
Votes = Int[np.ndarray, " vote"]


@dataclass(frozen=True, kw_only=True)
class RankingModel:
    """Priors of the ranking: normal, with these standard deviations; 0 leaves an effect out."""

    utility_deviation: float = 1.5
    """Of the utilities of songs, in logits."""
    reliability_deviation: float = 0.5
    """Of the reliability of raters, around 1. Larger values shorten the utilities, and their intervals too much."""
    bias_deviation: float = 0.5
    """Of the preference of raters for the song presented first, around 0."""
    tie_deviation: float = 2.0
    """Of the logarithm of the odds of a tie between equal songs, around 0; without ties there are no such odds."""

    def __post_init__(self) -> None:
        check_range(self, "utility_deviation", "tie_deviation", above=0)
        check_range(self, "reliability_deviation", "bias_deviation", low=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class VoteArrays:
    """Votes as arrays of indices."""

    songs: int
    """Number of songs."""
    raters: int
    first: Votes
    """Index of the song presented first."""
    second: Votes
    rater: Votes
    outcome: Votes
    """FIRST, TIE or SECOND."""
    weight: Float[np.ndarray, " vote"]
    """How much a vote counts, 1 for a usual one."""
    shift: Float[np.ndarray, " vote"]
    """Added to the difference of utilities: for control pairs, whose two songs are the same index, the known
    difference; 0 otherwise."""

    @staticmethod
    def of(
        first: Votes, second: Votes, rater: Votes, outcome: Votes, *, songs: int = 0, raters: int = 0
    ) -> "VoteArrays":
        """Votes of weight 1, without control pairs."""
        return VoteArrays(
            songs=songs or int(max(first.max(), second.max())) + 1,
            raters=raters or int(rater.max()) + 1,
            first=first,
            second=second,
            rater=rater,
            outcome=outcome,
            weight=np.ones(len(first)),
            shift=np.zeros(len(first)),
        )

    def select(self, mask: np.ndarray) -> "VoteArrays":
        """Some of the votes, of the same songs and raters."""
        names = ("first", "second", "rater", "outcome", "weight", "shift")
        return replace(self, **{name: getattr(self, name)[mask] for name in names})


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """Utilities of songs and what raters are like: the mode of the posterior, and its normal approximation."""

    utility: Float[np.ndarray, " song"]
    reliability: Float[np.ndarray, " rater"]
    bias: Float[np.ndarray, " rater"]
    """Preference for the song presented first, in logits."""
    tie: float
    """Davidson's odds of a tie against either of two equal songs; 0 without ties."""
    reliability_deviation: Float[np.ndarray, " rater"]
    """Posterior standard deviation of each rater's reliability; 0 where the model has none."""
    bias_deviation: Float[np.ndarray, " rater"]
    posterior: RankingPosterior

    @property
    def component(self) -> Int[np.ndarray, " song"]:
        """The set of songs, connected by votes, that each song is in; songs of two sets are not comparable."""
        return self.posterior.component

    def relative(self) -> tuple[Float[np.ndarray, " song"], Float[np.ndarray, " song"]]:
        """Utility minus the mean of the song's component, and the standard deviation of that difference."""
        return self.posterior.centre(self.utility)

    def contrast(self, labels: Int[np.ndarray, " song"]) -> tuple[np.ndarray, np.ndarray]:
        """Utility minus the mean of the songs with the same label, and its standard deviation; NaN for negative
        labels."""
        return self.posterior.centre(self.utility, labels)

    def difference(
        self, first: Int[np.ndarray, " pair"], second: Int[np.ndarray, " pair"]
    ) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
        """Difference of the utilities of two songs, and its standard deviation."""
        return self.utility[first] - self.utility[second], self.posterior.deviation(first, second)

    def preference(
        self, first: Int[np.ndarray, " pair"], second: Int[np.ndarray, " pair"]
    ) -> Float[np.ndarray, " pair"]:
        """Probability that a listener of reliability 1 who may not answer tie prefers the first of two songs; the
        mean over the posterior."""
        value, deviation = self.difference(first, second)
        return win_probability(value / np.sqrt(1 + np.pi / 8 * deviation**2))


def margins(theta: np.ndarray, votes: VoteArrays, model: RankingModel) -> np.ndarray:
    """The margin d of every vote."""
    s, a, b, _ = unpack(theta, votes, model)
    return a[votes.rater] * (s[votes.first] - s[votes.second] + votes.shift) + b[votes.rater]


def unpack(
    theta: np.ndarray, votes: VoteArrays, model: RankingModel
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Utilities, reliabilities, biases and log ν; effects that the model lacks have their constant."""
    n, r = votes.songs, votes.raters
    place = n
    a, b = np.ones(r), np.zeros(r)
    if model.reliability_deviation:
        a, place = theta[place : place + r], place + r
    if model.bias_deviation:
        b, place = theta[place : place + r], place + r
    return theta[:n], a, b, float(theta[place]) if place < len(theta) else -np.inf


def prior(votes: VoteArrays, model: RankingModel) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of every parameter."""
    parts = [(votes.songs, 0.0, model.utility_deviation)]
    parts += [(votes.raters, 1.0, model.reliability_deviation)] if model.reliability_deviation else []
    parts += [(votes.raters, 0.0, model.bias_deviation)] if model.bias_deviation else []
    parts += [(1, 0.0, model.tie_deviation)] if (votes.outcome == TIE).any() else []
    mean = np.concatenate([np.full(count, centre) for count, centre, _ in parts])
    return mean, np.concatenate([np.full(count, deviation**-2.0) for count, _, deviation in parts])


def probabilities(margin: np.ndarray, log_tie: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Davidson's probabilities of the answers first, tie and second."""
    odds = np.stack([margin / 2, np.full(len(margin), log_tie), -margin / 2])
    odds = np.exp(odds - odds.max(0))
    first, tie, second = odds / odds.sum(0)
    return first, tie, second


def loss_and_slope(
    theta: np.ndarray,
    votes: VoteArrays,
    model: RankingModel,
    mean: np.ndarray,
    precision: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Minus the log-posterior, up to a constant, and its gradient. The prior is that of `prior`.

    Shapes are not annotated here and below: this is called hundreds of times for a ranking.
    """
    s, a, _, log_tie = unpack(theta, votes, model)
    margin = margins(theta, votes, model)
    first, tie, second = probabilities(margin, log_tie)
    likelihood = np.select([votes.outcome == FIRST, votes.outcome == TIE], [first, tie], second)
    loss = -votes.weight @ np.log(np.maximum(likelihood, 1e-300))
    loss += 0.5 * precision @ (theta - mean) ** 2
    error = votes.weight * (first - second - votes.outcome) / 2
    pull = error * a[votes.rater]
    difference = s[votes.first] - s[votes.second] + votes.shift
    parts = [np.bincount(votes.first, pull, votes.songs) - np.bincount(votes.second, pull, votes.songs)]
    if model.reliability_deviation:
        parts.append(np.bincount(votes.rater, error * difference, votes.raters))
    if model.bias_deviation:
        parts.append(np.bincount(votes.rater, error, votes.raters))
    if np.isfinite(log_tie):
        parts.append(np.array([votes.weight @ (tie - (votes.outcome == TIE))]))
    return float(loss), np.concatenate(parts) + precision * (theta - mean)


def fit_ranking(votes: VoteArrays, model: RankingModel) -> Ranking:
    """The ranking at the mode of the posterior.

    The search starts where all raters are alike, so that of the two mirrored modes it reaches the one in which most
    raters mean what they say.
    """
    plain = replace(model, reliability_deviation=0.0, bias_deviation=0.0)
    theta = prior(votes, model)[0]
    theta[: votes.songs] = _minimise(prior(votes, plain)[0], votes, plain)[: votes.songs]
    theta = _minimise(theta, votes, model)
    s, a, b, log_tie = unpack(theta, votes, model)
    posterior = invert_curvature(curvature(theta, votes, model), votes.first, votes.second)
    deviations = posterior.rater_deviations
    r = votes.raters
    reliability = deviations[:r] if model.reliability_deviation else np.zeros(r)
    bias = deviations[-r - bool(np.isfinite(log_tie)) :][:r] if model.bias_deviation else np.zeros(r)
    return Ranking(
        utility=s,
        reliability=a,
        bias=b,
        tie=float(np.exp(log_tie)),
        reliability_deviation=reliability,
        bias_deviation=bias,
        posterior=posterior,
    )


def _minimise(
    theta: Float[np.ndarray, " parameter"], votes: VoteArrays, model: RankingModel
) -> Float[np.ndarray, " parameter"]:
    from scipy.optimize import minimize

    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "maxcor": 30, "ftol": 1e-12, "gtol": 1e-6}
    result = minimize(
        loss_and_slope, theta, (votes, model, *prior(votes, model)), "L-BFGS-B", jac=True, options=options
    )
    return np.asarray(result.x, np.float64)


def curvature(theta: Float[np.ndarray, " parameter"], votes: VoteArrays, model: RankingModel) -> Curvature:
    """The second derivatives of minus the log-posterior, in blocks: songs, and what belongs to raters and ties."""
    s, a, _, log_tie = unpack(theta, votes, model)
    first, tie, second = probabilities(margins(theta, votes, model), log_tie)
    error = votes.weight * (first - second - votes.outcome) / 2
    reliability, difference = a[votes.rater], s[votes.first] - s[votes.second] + votes.shift
    # of every effect: its place, the derivative of the margin, and the second derivative with the difference
    effects: list[tuple[Votes, np.ndarray, np.ndarray]] = []
    if model.reliability_deviation:
        effects.append((votes.rater, difference, error))
    if model.bias_deviation:
        place = len(effects) * votes.raters + votes.rater
        effects.append((place, np.ones_like(error), np.zeros_like(error)))
    size = len(effects) * votes.raters + bool(np.isfinite(log_tie))
    weight = votes.weight * ((first + second) - (first - second) ** 2) / 4
    cross, corner = np.zeros((votes.songs, size)), np.zeros((size, size))
    for place, slope, bend in effects:
        np.add.at(cross, (votes.first, place), weight * slope * reliability + bend)
        np.add.at(cross, (votes.second, place), -weight * slope * reliability - bend)
        for column, slope_of_column, _ in effects:
            np.add.at(corner, (place, column), weight * slope * slope_of_column)
    if np.isfinite(log_tie):
        tie_cross = -votes.weight * tie * (first - second) / 2
        last = np.full_like(votes.rater, size - 1)
        np.add.at(cross, (votes.first, last), tie_cross * reliability)
        np.add.at(cross, (votes.second, last), -tie_cross * reliability)
        for place, slope, _ in effects:
            np.add.at(corner, (place, last), tie_cross * slope)
            np.add.at(corner, (last, place), tie_cross * slope)
        corner[-1, -1] += votes.weight @ (tie * (1 - tie))
    precision = prior(votes, model)[1]
    corner[np.diag_indices(size)] += precision[votes.songs :]
    return Curvature(
        weight=weight * reliability**2, precision=precision[: votes.songs], cross=cross, corner=corner
    )
