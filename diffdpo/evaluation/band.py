"""The band of real songs: where a witness lies for real music, and whether a model has left it.

A judge that can only go up is gamed without being mined: harmony's witnesses keep rising when a model is pushed to
where no real song is. A band tells improvement from that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from diffdpo.errors import DataError
from diffdpo.evaluation.composites import WitnessValues
from diffdpo.statistics import Effect, paired_effect

BAND_WITNESSES = (
    "note.triad",
    "note.key",
    "note.scale",
    "note.clean",
    "note.pulse",
    "beat.coherence",
    "beat.pulse",
    "note.recur",
    "note.variety",
)
"""The witnesses of the in-band share. They are fixed, so that shares of different models can be compared."""
BAND_PERCENTILES = (10.0, 90.0)
MIN_WINDOWS = 20
"""Real windows of a style from which on it has a band of its own."""


@dataclass(frozen=True)
class Band:
    """The range of a witness over real windows, from the 10th to the 90th percentile."""

    low: float
    high: float

    def contains(self, values: Float[np.ndarray, " song"]) -> Bool[np.ndarray, " song"]:
        """Whether each value lies inside, ends included; what is no number lies outside."""
        return (values >= self.low) & (values <= self.high)


WitnessBands = Mapping[str, Band]
"""The band of each witness."""


def real_bands(real: WitnessValues) -> dict[str, Band]:
    """The band of each witness over real windows; windows without a finite value are left out."""
    return {axis: _band(axis, values) for axis, values in real.items()}


def style_bands(real: WitnessValues, styles: Sequence[str]) -> dict[str, dict[str, Band]]:
    """The bands of each style of real windows that has 20 of them or more."""
    names = np.array(styles)
    counts = {style: int((names == style).sum()) for style in sorted(set(styles))}
    return {
        style: real_bands({axis: values[names == style] for axis, values in real.items()})
        for style, count in counts.items()
        if count >= MIN_WINDOWS
    }


def in_band_shares(
    witnesses: WitnessValues,
    bands: WitnessBands,
    *,
    styles: Sequence[str] | None = None,
    bands_by_style: Mapping[str, WitnessBands] | None = None,
) -> Float[np.ndarray, " song"]:
    """For each song the share of the nine witnesses that lie in their band.

    With `styles`, one for each song, the band is that of the song's style in `bands_by_style`, or that of all
    styles where the style has none.
    """
    inside = np.mean([bands[axis].contains(witnesses[axis]) for axis in _present(witnesses, bands)], axis=0)
    if styles is None or not bands_by_style:
        return inside
    names = np.array(styles)
    for style in set(styles) & bands_by_style.keys():
        songs = np.flatnonzero(names == style)
        part = {axis: values[songs] for axis, values in witnesses.items()}
        inside[songs] = in_band_shares(part, bands_by_style[style])
    return inside


@dataclass(frozen=True)
class BandChange:
    """How a model lies to the band of real songs, compared with its base."""

    base_share: float
    aligned_share: float
    real_share: float
    """Of the real windows themselves, NaN where they were not given: near .8 by definition of the band."""
    change: Effect
    """Of the in-band share, paired, with an interval over prompts."""
    witnesses_outside: tuple[str, ...]
    """Witnesses whose mean over the aligned songs lies outside of their band."""

    @property
    def over_optimised(self) -> bool:
        """Whether a mean left its band, or the in-band share fell below the base's by its whole interval."""
        return bool(self.reasons)

    @property
    def reasons(self) -> tuple[str, ...]:
        """A phrase for each way in which the model is over-optimised."""
        phrases = [f"the mean of {axis} left the band of real songs" for axis in self.witnesses_outside]
        if self.change.direction == "worse":
            phrases.append(
                f"the in-band share fell by {-self.change.mean:.3f} "
                f"({-self.change.high:.3f} to {-self.change.low:.3f})"
            )
        return tuple(phrases)


def band_change(
    base: WitnessValues,
    aligned: WitnessValues,
    prompts: Sequence[str],
    bands: WitnessBands,
    *,
    real: WitnessValues | None = None,
) -> BandChange:
    """The in-band shares of a base's and a model's songs, paired by place, by the bands of all styles together."""
    shares = in_band_shares(base, bands), in_band_shares(aligned, bands)
    return BandChange(
        base_share=float(shares[0].mean()),
        aligned_share=float(shares[1].mean()),
        real_share=float(in_band_shares(real, bands).mean()) if real is not None else float("nan"),
        change=paired_effect(*shares, prompts),
        witnesses_outside=tuple(
            axis
            for axis in _present(aligned, bands)
            if not bands[axis].contains(np.array([_finite_mean(aligned[axis])]))[0]
        ),
    )


def _band(axis: str, values: Float[np.ndarray, " window"]) -> Band:
    usable = values[np.isfinite(values)]
    if len(usable) < 2:
        raise DataError(f"{axis}: fewer than two real windows have a score, so that there is no band")
    low, high = np.percentile(usable, BAND_PERCENTILES)
    return Band(float(low), float(high))


def _present(witnesses: WitnessValues, bands: WitnessBands) -> tuple[str, ...]:
    """The nine witnesses. DataError if one has no scores or no band."""
    for axis in BAND_WITNESSES:
        if axis not in witnesses or axis not in bands:
            side = "scores of the songs" if axis not in witnesses else "bands of real songs"
            raise DataError(
                f"the in-band share needs the witness {axis}, which the {side} lack; score notes and beats"
            )
    return BAND_WITNESSES


def _finite_mean(values: Float[np.ndarray, " song"]) -> float:
    usable = values[np.isfinite(values)]
    return float(usable.mean()) if len(usable) else float("nan")
