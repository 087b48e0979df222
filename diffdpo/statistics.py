"""Paired comparisons with intervals over prompts: the unit is the prompt, not the sample."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MIN_CLUSTERS = 8
"""Prompts from which on an interval may decide: of fewer, chance says better or worse too often."""


@dataclass(frozen=True)
class Effect:
    """A mean paired difference with its interval over clusters (prompts)."""

    mean: float
    low: float
    high: float
    win_rate: float
    """Share of pairs in which the treatment is better; ties count half."""
    effect_size: float
    """The mean in standard deviations of the baseline."""
    count: int
    clusters: int

    @property
    def direction(self) -> str:
        """`better` or `worse` if the interval leaves out zero, else `unclear`; below 8 clusters `unclear`."""
        if self.clusters < MIN_CLUSTERS:
            return "unclear"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "unclear"


def paired_effect(
    baseline: Float[np.ndarray, " sample"],
    treatment: Float[np.ndarray, " sample"],
    clusters: Sequence[str],
    *,
    level: float = 0.95,
) -> Effect:
    """The effect of `treatment` over `baseline`, sample by sample, with an interval over clusters (prompts).

    Samples of one prompt are alike, so that the variance is that of the clusters' sums around the mean (Cochran
    1977, section 6.4), and the interval has the quantiles of Student's t with one degree of freedom less than there
    are clusters. With one cluster the interval is infinite.
    """
    from scipy.special import stdtrit

    difference = treatment - baseline
    member, counts = np.unique(np.array(clusters), return_inverse=True, return_counts=True)[1:]
    mean, n_clusters = float(difference.mean()), len(counts)
    residuals = np.bincount(member, weights=difference) - counts * mean
    margin = math.inf
    if n_clusters > 1:
        variance = n_clusters / (n_clusters - 1) * float(residuals @ residuals) / len(difference) ** 2
        margin = float(stdtrit(n_clusters - 1, (1 + level) / 2)) * math.sqrt(variance)
    spread = float(baseline.std(ddof=1)) if len(baseline) > 1 else 0.0
    return Effect(
        mean=mean,
        low=mean - margin,
        high=mean + margin,
        win_rate=float((difference > 0).mean() + 0.5 * (difference == 0).mean()),
        effect_size=mean / spread if spread > 0 else 0.0,
        count=len(difference),
        clusters=n_clusters,
    )


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile bootstrap interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(draws: Float[np.ndarray, " draw"], level: float = 0.95) -> "Interval":
        """The interval of a statistic from its values for the rows of `cluster_weights`, the estimate first."""
        low, high = np.quantile(draws[1:], [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(draws[0]), float(low), float(high))


def cluster_weights(
    clusters: Sequence[str], *, resamples: int, seed: int = 0
) -> Float[np.ndarray, "draw cluster"]:
    """Bootstrap weights of clusters in the order of their names: ones in the first row, and in `resamples` further
    rows how often each cluster was drawn with replacement.

    The draws depend on the names: two sets of the same clusters are resampled alike, so that a difference between
    the sets is paired; sets of different clusters are resampled independently.
    """
    names = sorted(set(clusters))
    rng = np.random.default_rng([seed, zlib.crc32("\n".join(names).encode())])
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    return np.concatenate([np.ones((1, len(names))), counts])


def members(clusters: Sequence[str]) -> Int[np.ndarray, " item"]:
    """The index of each item's cluster, clusters in the order of their names."""
    return np.unique(np.array(clusters), return_inverse=True)[1]


def weighted_quantiles(
    values: Float[np.ndarray, " item"], weights: Float[np.ndarray, "draw item"], share: float
) -> Float[np.ndarray, " draw"]:
    """The smallest value that at least `share` of the weight does not exceed, for each row of weights."""
    order = np.argsort(values)
    totals = np.cumsum(weights[:, order], axis=1)
    first = (totals >= share * totals[:, -1:] * (1 - 1e-12)).argmax(1)
    return values[order][first]
