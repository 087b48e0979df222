"""What the witnesses say of a model: composites by trait, the band of real songs, and best-of-N of the base."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffdpo.evaluation.band import (
    BAND_WITNESSES,
    MIN_WINDOWS,
    Band,
    BandChange,
    band_change,
    real_bands,
)
from diffdpo.evaluation.best_of_n import (
    SELECTION_AXES,
    EquivalentN,
    GainCurve,
    best_of_n_kl,
    equivalent_n,
    gain_curve,
    selection_scores,
)
from diffdpo.evaluation.composites import (
    ALL_TRAITS,
    HARMONY_WITNESSES,
    RHYTHM_WITNESSES,
    CompositeScale,
    WitnessValues,
    composite_effects,
    fit_composites,
)
from diffdpo.evaluation.effects import PairedSample
from diffdpo.evaluation.evidence import witness_values
from diffdpo.evaluation.real_songs import RealSongs, read_table
from diffdpo.mining.values import Candidate
from diffdpo.statistics import Effect, Interval, estimate_mean

FORM_WITNESS = "form.order"
BAND_GROUP = "judge"
"""The real songs that the band is taken from: those that nothing is fitted to."""


@dataclass(frozen=True)
class BestOfN:
    """What choosing the best of n of the base's songs gains of W.all."""

    n: int
    kl: float
    """KL divergence from the base, in nats."""
    gain: Interval


@dataclass(frozen=True)
class WitnessReport:
    """Composites of the aligned songs against the base's, in standard deviations of the base's songs."""

    composites: Mapping[str, Effect]
    definition: str
    """What W.all is the mean of."""
    band: BandChange | None
    """None when one of the nine witnesses has no scores."""
    n_equivalent: EquivalentN | None
    """The N at which best-of-N of the base gains as much of W.all; None without candidates that have all scores."""
    best_of_n: tuple[BestOfN, ...] = ()
    """The gain of choosing, from the best of one on; empty without candidates."""
    gains: tuple[float, ...] = ()
    """The change of W.all of each pair of songs."""
    real: Mapping[str, Interval] = field(default_factory=dict)
    """The mean of each composite over real windows, on the scale of the base's songs, whose mean is 0, with an
    interval over artists. Empty without real songs that have all witnesses."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The report in a few lines of text."""
        rows = [
            f"{name} {effect.mean:+.2f} ({effect.low:+.2f} {effect.high:+.2f}) sd"
            for name, effect in self.composites.items()
        ]
        lines = [f"witnesses: {', '.join(rows)}; {self.definition}"]
        if self.band is not None:
            change = self.band.change
            lines.append(
                f"in-band share {self.band.base_share:.2f} -> {self.band.aligned_share:.2f}, change "
                f"{change.mean:+.3f} ({change.low:+.3f} {change.high:+.3f})"
            )
        if self.real:
            rows = [
                f"{name} {at.value:+.2f} ({at.low:+.2f} {at.high:+.2f})" for name, at in self.real.items()
            ]
            lines.append(f"real songs on this scale: {', '.join(rows)}")
        if self.n_equivalent is not None:
            lines.append(f"as good as the best of {self.n_equivalent.text()} of the base's songs")
        return tuple(lines)


def judge_songs() -> RealSongs:
    """The real songs of the package's table that nothing is fitted to."""
    return read_table().of_group(BAND_GROUP)


def shipped_bands() -> dict[str, Band]:
    """The band of each axis of the package's table of real songs, over the songs of the judge's group."""
    songs = judge_songs()
    columns = {axis: songs.column(axis) for axis in songs.axes}
    return real_bands(
        {axis: values for axis, values in columns.items() if np.isfinite(values).sum() >= MIN_WINDOWS}
    )


def witness_report(
    pairs: Sequence[PairedSample],
    mined_axes: Collection[str],
    candidates: Sequence[Candidate] = (),
    bands: Mapping[str, Band] | None = None,
    real: RealSongs | None = None,
) -> WitnessReport | None:
    """The report of paired songs; None unless all have the witnesses of harmony and rhythm.

    Witnesses that were mined are no witnesses: None then, too. `candidates` are the base's, for best-of-N; `real`
    are put on the scale beside them.
    """
    requirements = (*HARMONY_WITNESSES, *RHYTHM_WITNESSES)
    names = {*requirements, FORM_WITNESS, *BAND_WITNESSES} - set(mined_axes)
    base, aligned = witness_values(pairs, names)
    complete = {axis for axis in names if _is_complete(base, axis) and _is_complete(aligned, axis)}
    if not complete.issuperset(requirements):
        return None
    prompts = [pair.group for pair in pairs]
    scale = fit_composites(base, [FORM_WITNESS] if FORM_WITNESS in complete else [])
    composites = composite_effects(scale, base, aligned, prompts)
    has_band = bands is not None and complete.issuperset(BAND_WITNESSES)
    change = scale.values(aligned)[ALL_TRAITS] - scale.values(base)[ALL_TRAITS]
    curve = _gain_curve(scale, candidates)
    return WitnessReport(
        composites=composites,
        definition=scale.definition,
        band=band_change(base, aligned, prompts, bands) if has_band and bands is not None else None,
        n_equivalent=equivalent_n(curve, change, prompts) if curve is not None else None,
        best_of_n=_curve_points(curve) if curve is not None else (),
        gains=tuple(change.tolist()),
        real=real_composites(scale, real) if real is not None else {},
    )


def real_composites(scale: CompositeScale, real: RealSongs) -> dict[str, Interval]:
    """The mean of each composite over real windows, with an interval over artists; empty where a witness is absent.

    A model whose songs are like real ones has these values. Windows without a value are left out.
    """
    axes = {axis for members in scale.members.values() for axis in members}
    if not axes.issubset(real.axes):
        return {}
    values = scale.values({axis: real.column(axis) for axis in axes})
    usable = np.isfinite(values[ALL_TRAITS])
    artists = [
        artist or song
        for artist, song, has in zip(real.artist, real.song, usable.tolist(), strict=True)
        if has
    ]
    return {name: estimate_mean(column[usable], artists).interval() for name, column in values.items()}


def _is_complete(values: WitnessValues, axis: str) -> bool:
    return axis in values and bool(np.isfinite(values[axis]).all())


def _gain_curve(scale: CompositeScale, candidates: Sequence[Candidate]) -> GainCurve | None:
    """The gain of W.all by choosing, over the candidates that have all scores; None for fewer than two a prompt."""
    axes = {*SELECTION_AXES, *(axis for members in scale.members.values() for axis in members)}
    usable = [c for c in candidates if all(np.isfinite(c.scores.get(axis, np.nan)) for axis in axes)]
    groups = [candidate.group for candidate in usable]
    if not usable or min(groups.count(group) for group in set(groups)) < 2:
        return None
    columns = {axis: np.array([candidate.scores[axis] for candidate in usable]) for axis in axes}
    return gain_curve(selection_scores(columns, groups), scale.values(columns)[ALL_TRAITS], groups)


def _curve_points(curve: GainCurve) -> tuple[BestOfN, ...]:
    return tuple(
        BestOfN(n, best_of_n_kl(n), curve.estimate(n).interval()) for n in range(1, curve.largest + 1)
    )
