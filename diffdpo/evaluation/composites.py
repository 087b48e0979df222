"""Composites of witnesses by trait, in standard deviations of the base's evaluation songs.

A witness is an axis that took no part in mining. All is measured with two numbers of each witness, its mean
and deviation over the base's songs: candidates and real songs are put on the same scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffdpo.errors import DataError
from diffdpo.statistics import Effect, paired_effect

WitnessValues = Mapping[str, Float[np.ndarray, " _"]]
"""The values of each witness, song by song or window by window."""
HARMONY_WITNESSES = ("note.triad", "note.key", "note.scale")
RHYTHM_WITNESSES = ("beat.coherence",)
ALL_TRAITS = "W.all"


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation (n - 1) of a witness over the base's songs."""

    mean: float
    deviation: float

    def z(self, values: Float[np.ndarray, " song"]) -> Float[np.ndarray, " song"]:
        """Values in deviations from the mean."""
        return (values - self.mean) / self.deviation


@dataclass(frozen=True)
class CompositeScale:
    """The scale of the composites: fitted on the base's songs by `fit_composites`, used for all others."""

    members: Mapping[str, tuple[str, ...]]
    """The witnesses of each composite, `W.all` left out."""
    standards: Mapping[str, Standard]
    """Of each witness."""
    deviations: Mapping[str, float]
    """Of each composite over the base's songs, before it is divided by it; `W.all` included."""

    @property
    def definition(self) -> str:
        """What `W.all` is the mean of, in words."""
        if "W.form" in self.members:
            return "W.all is the mean of harmony, rhythm and form"
        return "W.all is the mean of harmony and rhythm: no witness of form has scores of all songs"

    def values(self, witnesses: WitnessValues) -> dict[str, Float[np.ndarray, " song"]]:
        """Each composite of each song, W.all last. NaN where a witness has no finite value."""
        composites = {name: self._raw(name, witnesses) / self.deviations[name] for name in self.members}
        average = np.mean(list(composites.values()), axis=0)
        return composites | {ALL_TRAITS: average / self.deviations[ALL_TRAITS]}

    def _raw(self, name: str, witnesses: WitnessValues) -> Float[np.ndarray, " song"]:
        return _mean_z(self.members[name], self.standards, witnesses)


def fit_composites(base: WitnessValues, form: Sequence[str] = ()) -> CompositeScale:
    """The scale of harmony, rhythm, form (if it has a witness) and their mean over the base's songs.

    `form` names the witnesses of form, higher is better; without any, `W.all` is the mean of harmony and rhythm.
    DataError for a witness that is absent, has no finite value for a song, or is the same for all songs.
    """
    members = {"W.harmony": HARMONY_WITNESSES, "W.rhythm": RHYTHM_WITNESSES}
    if form:
        members["W.form"] = tuple(form)
    standards = {axis: _standard(axis, base) for axes in members.values() for axis in axes}
    raw = {name: _mean_z(axes, standards, base) for name, axes in members.items()}
    deviations = {name: float(values.std(ddof=1)) for name, values in raw.items()}
    average = np.mean([values / deviations[name] for name, values in raw.items()], axis=0)
    return CompositeScale(
        members=members,
        standards=standards,
        deviations=deviations | {ALL_TRAITS: float(average.std(ddof=1))},
    )


def composite_effects(
    scale: CompositeScale, base: WitnessValues, aligned: WitnessValues, prompts: Sequence[str]
) -> dict[str, Effect]:
    """The change of each composite, in the base's deviations, with an interval over prompts.

    Songs are paired by place. A pair in which a composite is not finite is left out of that composite.
    """
    base_values, aligned_values = scale.values(base), scale.values(aligned)
    results = {}
    for name in base_values:
        usable = np.isfinite(base_values[name]) & np.isfinite(aligned_values[name])
        if not usable.any():
            raise DataError(f"{name}: no pair of songs has all of its witnesses; score both sides")
        names = np.array(prompts)[usable].tolist()
        results[name] = paired_effect(base_values[name][usable], aligned_values[name][usable], names)
    return results


def _standard(axis: str, base: WitnessValues) -> Standard:
    if axis not in base:
        raise DataError(f"the base's songs have no scores on the witness {axis}; score them with its scorer")
    values = base[axis]
    if len(values) < 2 or not np.isfinite(values).all():
        raise DataError(f"{axis}: the base needs two songs or more, each with a finite score")
    deviation = float(values.std(ddof=1))
    if deviation == 0:
        raise DataError(f"{axis}: the same for all {len(values)} songs of the base, so that it has no scale")
    return Standard(float(values.mean()), deviation)


def _mean_z(
    axes: Sequence[str], standards: Mapping[str, Standard], witnesses: WitnessValues
) -> Float[np.ndarray, " song"]:
    return np.mean([standards[axis].z(witnesses[axis]) for axis in axes], axis=0)
