"""Paired comparisons with bootstrap intervals: the unit of resampling is the prompt, not the sample."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Effect:
    """A mean paired difference with its percentile bootstrap interval."""

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
        """`better` or `worse` if the interval leaves out zero, else `unclear`."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "unclear"


def paired_effect(
    baseline: Float[np.ndarray, " sample"],
    treatment: Float[np.ndarray, " sample"],
    clusters: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Effect:
    """The effect of `treatment` over `baseline`, sample by sample, with an interval over clusters (prompts).

    Whole clusters are drawn with replacement (Davison & Hinkley 1997, 3.8): samples of one prompt are alike, and
    an interval over samples would be too narrow.
    """
    difference = treatment - baseline
    names = sorted(set(clusters))
    member = np.array([names.index(cluster) for cluster in clusters])
    sums = np.bincount(member, weights=difference, minlength=len(names))
    counts = np.bincount(member, minlength=len(names))
    draws = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    spread = float(baseline.std(ddof=1)) if len(baseline) > 1 else 0.0
    return Effect(
        mean=float(difference.mean()),
        low=float(low),
        high=float(high),
        win_rate=float((difference > 0).mean() + 0.5 * (difference == 0).mean()),
        effect_size=float(difference.mean() / spread) if spread > 0 else 0.0,
        count=len(difference),
        clusters=len(names),
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
