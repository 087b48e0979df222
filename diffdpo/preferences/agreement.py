"""How far listeners agree: with each other, with themselves, with what is known, and whether they prefer a side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from diffdpo.errors import UserError

Measurement = Literal["nominal", "ordinal"]
OUTCOMES = (-1, 0, 1)
"""Outcomes on the scale of a pair: its second song, a tie, its first song."""


@dataclass(frozen=True)
class Share:
    """A share of a count, with Wilson's interval."""

    successes: int
    count: int
    value: float
    """NaN of nothing."""
    low: float
    high: float


def wilson_share(successes: int, count: int, level: float = 0.95) -> Share:
    """The share of successes with Wilson's score interval; of no trials the interval is [0, 1]."""
    from scipy.special import ndtri

    if not count:
        return Share(0, 0, math.nan, 0.0, 1.0)
    z = float(ndtri((1 + level) / 2))
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Share(successes, count, share, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class SidePreference:
    """Whether the song presented first is preferred more often than by chance."""

    first: Share
    z: float
    """Deviation from one half in standard errors."""
    p_value: float
    """Two-sided and exact, of the hypothesis that sides do not matter."""


def side_preference(first: int, second: int) -> SidePreference:
    """The test of a preference for a side: `first` decisive votes for the song presented first, `second` others."""
    from scipy.stats import binomtest

    count = first + second
    if not count:
        return SidePreference(wilson_share(0, 0), 0.0, 1.0)
    z = (first - count / 2) / math.sqrt(count / 4)
    return SidePreference(wilson_share(first, count), z, float(binomtest(first, count).pvalue))


def krippendorff_alpha(
    units: Int[np.ndarray, " vote"], outcomes: Int[np.ndarray, " vote"], level: Measurement
) -> float:
    """Krippendorff's alpha: 1 for full agreement, 0 for that of chance; NaN where no two answers compare.

    `units` numbers the pairs that were judged, `outcomes` is of OUTCOMES on the pair's own scale. Units that were
    judged once do not count.
    """
    try:
        from krippendorff import alpha
    except ImportError:
        raise UserError('agreement needs krippendorff: pip install "diffdpo[people]"') from None
    number, member = np.unique(units, return_inverse=True)
    counts = np.zeros((len(number), len(OUTCOMES)), np.int64)
    np.add.at(counts, (member, np.searchsorted(OUTCOMES, outcomes)), 1)
    counts = counts[counts.sum(1) > 1]
    if not len(counts) or (counts.sum(0) > 0).sum() < 2:
        return math.nan
    return float(alpha(value_counts=counts, value_domain=list(OUTCOMES), level_of_measurement=level))


def count_matches(first: Sequence[int], second: Sequence[int]) -> Share:
    """How often two series of outcomes are the same, such as answers and their repetitions."""
    return wilson_share(sum(a == b for a, b in zip(first, second, strict=True)), len(first))
