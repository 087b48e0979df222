"""A knob that follows a listener: which value to try next, from the ratings of songs made at earlier values.

The listener's mean rating is a smooth function of the knob, a Gaussian process. The next value is the best one of a
function drawn from its posterior (Thompson sampling, as in Chowdhury & Gopalan 2017, arXiv 1704.00445): values are
tried as often as they may be the best. Older ratings count less, so that the knob follows a change of mood.
Le Groux & Verschure (2010) let a listener's running feedback control musical tension by a table of state values; a
process on a continuous knob needs no table and fewer ratings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range

DRAWS = 512
"""Functions drawn for the interval of the best value."""
KNOB_JITTER = 1e-9


@dataclass(frozen=True)
class KnobPolicy:
    """The prior of a listener's mean rating over the range of a knob, and how ratings are used."""

    points: int = 33
    """Values of the knob that can be chosen, evenly over the range."""
    length: float = 0.25
    """Distance, as a share of the range, over which the mean rating stays alike."""
    deviation: float = 1.0
    """Prior standard deviation of the mean rating; thumbs are ±1, stars (stars - 3) / 2."""
    noise: float = 0.7
    """Standard deviation of one rating around its mean: other songs at the same value are liked more or less."""
    memory: float = 40.0
    """Ratings after which an older one counts 1 / e; inf: none is forgotten."""

    def __post_init__(self) -> None:
        check_range(self, "points", low=2, prefix="policy.")
        check_range(self, "length", "deviation", "noise", above=0, prefix="policy.")
        check_range(self, "memory", above=0, high=np.inf, prefix="policy.")

    def grid(self, low: float, high: float) -> Float[np.ndarray, " point"]:
        """The values that can be chosen."""
        return np.linspace(low, high, self.points)


@dataclass(frozen=True, eq=False)
class KnobPosterior:
    """What ratings say of the mean rating at each value of a grid."""

    grid: Float[np.ndarray, " point"]
    mean: Float[np.ndarray, " point"]
    covariance: Float[np.ndarray, "point point"]

    @property
    def best(self) -> float:
        """The value with the highest mean rating."""
        return float(self.grid[np.argmax(self.mean)])

    def choose(self, rng: np.random.Generator) -> float:
        """The value to try next: the best of one function drawn from the posterior."""
        return float(self._best_of_draws(rng, 1)[0])

    def interval(self, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
        """Between which values the best one lies with a probability."""
        values = self._best_of_draws(np.random.default_rng(seed), DRAWS)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def _best_of_draws(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, " draw"]:
        sizes, axes = np.linalg.eigh(self.covariance)
        root = axes * np.sqrt(np.maximum(sizes, 0.0))
        draws = self.mean + rng.standard_normal((count, len(self.grid))) @ root.T
        best: Float[np.ndarray, " draw"] = self.grid[draws.argmax(1)]
        return best


def knob_posterior(
    policy: KnobPolicy, low: float, high: float, values: Sequence[float], ratings: Sequence[float]
) -> KnobPosterior:
    """The posterior over the range from `low` to `high`.

    `values` are the knob's at each rating, oldest first. Without ratings it is the prior, whose mean is 0.
    """
    grid, places = policy.grid(low, high), np.asarray(values, np.float64)
    prior = _kernel(policy, grid, grid, high - low)
    if not len(places):
        return KnobPosterior(grid, np.zeros(len(grid)), prior)
    ages = np.arange(len(places))[::-1]
    noise = policy.noise**2 * np.exp(ages / policy.memory)
    gram = _kernel(policy, places, places, high - low) + np.diag(noise + KNOB_JITTER)
    cross = _kernel(policy, grid, places, high - low)
    gain = np.linalg.solve(gram, cross.T).T
    covariance = prior - gain @ cross.T
    return KnobPosterior(grid, gain @ np.asarray(ratings, np.float64), (covariance + covariance.T) / 2)


def _kernel(
    policy: KnobPolicy, first: Float[np.ndarray, " m"], second: Float[np.ndarray, " n"], span: float
) -> Float[np.ndarray, "m n"]:
    """The prior covariance of mean ratings at two sets of values."""
    distances = (first[:, None] - second[None]) / (policy.length * span)
    kernel: Float[np.ndarray, "m n"] = policy.deviation**2 * np.exp(-(distances**2) / 2)
    return kernel
