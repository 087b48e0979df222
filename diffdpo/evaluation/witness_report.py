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
    composite_effects,
    fit_composites,
)
from diffdpo.evaluation.effects import PairedSample
from diffdpo.evaluation.evidence import witness_values
from diffdpo.evaluation.real_songs import RealSongs, read_table
from diffdpo.mining.values import Candidate
from diffdpo.statistics import Effect, Interval, estimate_mean

FORM_WITNESS = "form.order"
REQUIRED_WITNESSES = (*HARMONY_WITNESSES, *RHYTHM_WITNESSES)
SCALE_WITNESSES = (*REQUIRED_WITNESSES, FORM_WITNESS)
"""Witnesses of the composites, which need a deviation over the base's songs."""
ALL_WITNESSES = tuple(dict.fromkeys((*SCALE_WITNESSES, *BAND_WITNESSES)))
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
    """The report of paired songs; None unless the witnesses of harmony and rhythm are without `witness_faults`.

    `candidates` are the base's, for best-of-N; `real` are put on the scale beside them.
    """
    complete = set(ALL_WITNESSES) - witness_faults(pairs, mined_axes).keys()
    if not complete.issuperset(REQUIRED_WITNESSES):
        return None
    base, aligned = witness_values(pairs, complete)
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


def witness_faults(pairs: Sequence[PairedSample], mined_axes: Collection[str]) -> dict[str, str]:
    """The witnesses that cannot speak, each with the reason."""
    base, aligned = witness_values(pairs, ALL_WITNESSES)
    faults = {}
    for axis in ALL_WITNESSES:
        values = [*base.get(axis, ()), *aligned.get(axis, ())]
        absent = 2 * len(pairs) - int(np.isfinite(values).sum())
        if axis in mined_axes:
            faults[axis] = "mined"
        elif absent:
            faults[axis] = f"without a score of {absent} of {2 * len(pairs)} songs"
        elif axis in SCALE_WITNESSES and np.ptp(base[axis]) == 0:
            faults[axis] = "the same for all songs of the base"
    return faults


def fault_line(faults: Mapping[str, str]) -> str:
    """What is not measured because of `witness_faults`, in a line; empty without any that matters."""
    if not faults:
        return ""
    if faults.keys() & set(REQUIRED_WITNESSES):
        subject = "W.all and the in-band share"
    else:
        parts = {"form in W.all": {FORM_WITNESS}, "the in-band share": set(BAND_WITNESSES)}
        subject = " and ".join(name for name, axes in parts.items() if axes & faults.keys())
    axes_by_reason: dict[str, list[str]] = {}
    for axis, text in faults.items():
        axes_by_reason.setdefault(text, []).append(axis)
    reasons = "; ".join(f"{', '.join(axes)}: {text}" for text, axes in axes_by_reason.items())
    return f"not measured: {subject} ({reasons}); their scorers are notes, beats and form"


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
