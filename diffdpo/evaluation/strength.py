"""What the strength of an adapter does to an axis: the change per unit, and how far it goes on like that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffdpo.statistics import MIN_CLUSTERS, Interval, estimate_mean

LINE_TOLERANCE = 0.5
"""Share of the expected change by which a strength in the usable range may miss the line."""
UNIT = 1.0
"""Strengths up to this size decide the slope: those that a slider is trained at."""


@dataclass(frozen=True)
class StrengthResponse:
    """The changes of one axis at several strengths of an adapter, in standard deviations of the base's songs."""

    axis: str
    base_mean: float
    base_std: float
    strengths: tuple[float, ...]
    """Ascending, without 0."""
    changes: tuple[Interval, ...]
    """The mean change at each strength, with its interval over prompts."""
    slope: Interval
    """The change per unit of strength: least squares through the origin, over strengths from -1 to 1."""
    low: float
    """The lowest usable strength; 0 for none."""
    high: float
    """The highest usable strength; 0 for none."""
    prompts: int

    @property
    def is_monotone(self) -> bool:
        """Whether the mean change goes one way over all strengths, 0 among them."""
        means = [0.0, *(change.value for change in self.changes)]
        order = np.argsort([0.0, *self.strengths])
        steps = np.diff(np.array(means)[order])
        return bool((steps > 0).all() or (steps < 0).all())

    @property
    def is_measured(self) -> bool:
        """Whether the interval of the slope leaves out zero; never over fewer than 8 prompts."""
        return self.prompts >= MIN_CLUSTERS and (self.slope.low > 0 or self.slope.high < 0)

    @property
    def sentence(self) -> str:
        """What a user of the slider wants to know, for its card."""
        slope = self.slope
        change = f"{slope.value:+.2g} sd ({slope.low:.2g} to {slope.high:.2g})"
        if not self.is_measured:
            note = f", over {self.prompts} prompts" if self.prompts < MIN_CLUSTERS else ""
            return f"strength 1 changes {self.axis} by {change}: no measured effect{note}"
        return f"strength 1 changes {self.axis} by {change}; usable from {self.low:g} to {self.high:g}"


def fit_response(
    axis: str, values: Mapping[float, Mapping[str, float]], clusters: Mapping[str, str]
) -> StrengthResponse | None:
    """The response of one axis; None with fewer than two songs, or where all songs of the base are alike.

    `values` holds the value of each song, by its id, at each strength; 0 is the base. Songs with the same id have
    the same prompt and noise. `clusters` are the prompts of the songs, over which intervals are taken.
    """
    strengths = sorted(strength for strength in values if strength)
    songs = sorted(
        song
        for song in values[0.0]
        if all(math.isfinite(values[strength].get(song, math.nan)) for strength in values)
    )
    if len(songs) < 2:
        return None
    base = np.array([values[0.0][song] for song in songs])
    spread = float(base.std(ddof=1))
    if spread == 0:
        return None
    names = [clusters[song] for song in songs]
    changes = {s: (np.array([values[s][song] for song in songs]) - base) / spread for s in strengths}
    unit_strengths = [s for s in strengths if abs(s) <= UNIT] or strengths
    slopes = sum(s * changes[s] for s in unit_strengths) / sum(s * s for s in unit_strengths)
    slope = estimate_mean(np.asarray(slopes), names).interval()
    intervals = tuple(estimate_mean(changes[s], names).interval() for s in strengths)
    low, high = usable_range(strengths, [interval.value for interval in intervals], slope.value)
    return StrengthResponse(
        axis=axis,
        base_mean=float(base.mean()),
        base_std=spread,
        strengths=tuple(strengths),
        changes=intervals,
        slope=slope,
        low=low,
        high=high,
        prompts=len(set(names)),
    )


def usable_range(
    strengths: Sequence[float], changes: Sequence[float], slope: float, tolerance: float = LINE_TOLERANCE
) -> tuple[float, float]:
    """The range of strengths around 0 in which more strength is more change, and about as much as the slope says.

    It ends before the first strength, on each side, that does not go beyond the one before it, or whose change
    differs from slope times strength by more than `tolerance` of that.
    """
    by_strength = dict(zip(strengths, changes, strict=True))
    ends = []
    for side in (-1, 1):
        end = previous = 0.0
        for strength in sorted((s for s in by_strength if s * side > 0), key=abs):
            linear_change, way = slope * strength, math.copysign(1.0, slope * strength)
            change = by_strength[strength]
            if way * (change - previous) <= 0 or abs(change - linear_change) > tolerance * abs(linear_change):
                break
            end, previous = strength, change
        ends.append(end)
    return ends[0], ends[1]
