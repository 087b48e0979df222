"""The effect of each axis as a row of the page: its interval on one scale, and its means on the band of real songs.

Rows are grouped by trait, so that judges stand beside the mined axes of what they judge.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffdpo.evaluation.band import Band
from diffdpo.evaluation.effects import AxisEffect
from diffdpo.report import plots
from diffdpo.report.text import family, format_signed, name, number
from diffdpo.scorers.axes import axis_traits

MAX_EFFECT_SIZE = 4.0
"""Standard deviations at which the effect plot ends. Longer bars are cut off there; their numbers are not."""
BAND_ENDS = (20.0, 80.0)
"""Where the 10th and the 90th percentile of real songs lie, in percent of the width: the same in every row."""
NO_TRAIT = "other axes"


@dataclass(frozen=True)
class BandMarks:
    """The means of an axis on the band of real songs, in percent of the width."""

    band: Band
    base: float
    aligned: float
    outside: bool
    """Whether the aligned songs' mean lies outside."""
    cut: bool
    """Whether a mean lies beyond the plot, and its dot at the edge."""
    aria_label: str


@dataclass(frozen=True)
class EffectRow:
    """One axis of the effect plot. Marks are in percent of the width; none without a spread to scale by."""

    effect: AxisEffect
    name: str
    family: str
    marks: tuple[float, float, float] | None
    """Low, mean, high."""
    effect_sizes: tuple[float, float, float]
    band: BandMarks | None
    """None for an axis that real songs have no scores on."""

    @property
    def aria_label(self) -> str:
        """The effect in words."""
        low, mean, high = (format_signed(value) for value in self.effect_sizes)
        direction = self.effect.effect.direction
        return f"{self.effect.axis}: {mean} standard deviations, 95 % interval {low} to {high}, {direction}"


@dataclass(frozen=True)
class TraitRows:
    """The axes of one trait: mined ones, then judges, then diagnoses."""

    trait: str
    rows: tuple[EffectRow, ...]


@dataclass(frozen=True)
class Forest:
    """All axes on one scale, by trait."""

    traits: tuple[TraitRows, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]
    cut: bool
    """Whether an interval is longer than the plot."""
    has_bands: bool


def forest(
    effects: Sequence[AxisEffect],
    bands: Mapping[str, Band] | None = None,
    traits: Mapping[str, str] | None = None,
) -> Forest:
    """Mean differences and intervals of all axes on one scale, the standard deviation of the baseline.

    Traits, by default those of the scorers, come in the order of their first axis.
    """
    traits = axis_traits() if traits is None else traits
    intervals = [interval_in_sd(e) for e in effects]
    finite = [value for values in intervals for value in values if math.isfinite(value)]
    inside = [max(-MAX_EFFECT_SIZE, min(MAX_EFFECT_SIZE, value)) for value in finite]
    low, high = min([-0.2, *inside]), max([0.2, *inside])
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return round(100 * max(0.0, min(1.0, (value - low) / (high - low))), 2)

    groups: dict[str, list[EffectRow]] = {}
    for e, values in zip(effects, intervals, strict=True):
        is_visible = all(map(math.isfinite, values))
        marks = (at(values[0]), at(values[1]), at(values[2])) if is_visible else None
        band = band_marks(e, bands[e.axis]) if bands and e.axis in bands else None
        row = EffectRow(e, name(e.axis), family(e.axis), marks, values, band)
        groups.setdefault(traits.get(e.axis, NO_TRAIT), []).append(row)
    return Forest(
        traits=tuple(TraitRows(trait, tuple(rows)) for trait, rows in groups.items()),
        zero=at(0.0),
        ticks=tuple((at(value), format_signed(value, "g")) for value in plots.ticks(low, high, 5)),
        cut=inside != finite,
        has_bands=any(row.band is not None for rows in groups.values() for row in rows),
    )


def interval_in_sd(axis: AxisEffect) -> tuple[float, float, float]:
    """Low, mean and high of an effect in standard deviations of the baseline; NaN where the deviation is 0."""
    spread = axis.baseline_std if axis.baseline_std > 0 else math.nan
    return axis.effect.low / spread, axis.effect.mean / spread, axis.effect.high / spread


def band_marks(axis: AxisEffect, band: Band) -> BandMarks | None:
    """The means of base and aligned on a band that takes the same place in every row; None for an empty band."""
    width = band.high - band.low
    if not width > 0:
        return None
    left, right = BAND_ENDS
    means = axis.baseline_mean, axis.aligned_mean
    places = [left + (mean - band.low) / width * (right - left) for mean in means]
    base, aligned = (round(max(0.0, min(100.0, place)), 2) for place in places)
    positions = [_position(mean, band) for mean in means]
    return BandMarks(
        band=band,
        base=base,
        aligned=aligned,
        outside=positions[1] != "inside",
        cut=[base, aligned] != [round(place, 2) for place in places],
        aria_label=f"{axis.axis} beside real songs, whose middle 80 % lie from {number(band.low)} to "
        f"{number(band.high)}: base {number(means[0])}, {positions[0]}; aligned {number(means[1])}, {positions[1]}",
    )


def _position(mean: float, band: Band) -> str:
    if mean < band.low:
        return "below"
    return "above" if mean > band.high else "inside"
