"""An audit of axes on scored songs: all statistics of validity of every axis, and the judgement, in one value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from diffdpo.evaluation.composites import ALL_TRAITS, HARMONY_WITNESSES, RHYTHM_WITNESSES, fit_composites
from diffdpo.evaluation.effects import Role
from diffdpo.evaluation.validity import (
    AxisColumns,
    Judgement,
    disattenuate,
    half_reliability,
    judge_axis,
    ladder_effect,
    trait_composite,
    transfer_gains,
    within_correlation,
)
from diffdpo.evaluation.witness_report import FORM_WITNESS
from diffdpo.statistics import Effect, Interval, estimate_difference, estimate_mean


@dataclass(frozen=True, kw_only=True)
class AxisFacts:
    """What an axis says of itself."""

    axis: str
    trait: str
    role: Role
    """`mined` for an axis that may be mined, `judge` and `diagnosis` for those of scorers that are held out."""

    @property
    def is_witness(self) -> bool:
        return self.role != "mined"


@dataclass(frozen=True, kw_only=True, eq=False)
class WorseSongs:
    """Songs of the same prompts by a worse setting."""

    values: AxisColumns
    prompts: Sequence[str]
    counterparts: Sequence[int | None]
    """The place of the candidate of the same noise, where there is one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditSongs:
    """The scored songs of an audit."""

    prompts: Sequence[str]
    """Of each candidate."""
    values: AxisColumns
    halves: tuple[AxisColumns, AxisColumns]
    """The scores of the first and second half of each candidate."""
    texture: AxisColumns
    worse: Mapping[str, WorseSongs] = field(default_factory=dict)
    """By the name of the setting."""
    real: AxisColumns = field(default_factory=dict)
    """Windows of real songs, on the axes that have values of the same scorer there."""
    real_songs: Sequence[str] = ()
    """The song of each window."""


@dataclass(frozen=True, kw_only=True)
class AxisAudit:
    """What is known of the validity of one axis on these songs."""

    axis: str
    trait: str
    role: Role
    reliability: Interval
    """Of a song's score within its prompt, from halves."""
    convergent_axes: tuple[str, ...]
    """The independent axes of the same trait, whose mean it is compared with."""
    convergent: Interval | None
    """Correlation within prompts with that mean; None without such axes."""
    agreement_without_noise: float
    """The same as it were without errors of measurement, by the reliability of both; NaN if unknown."""
    partial: Interval | None
    """The same correlation with texture held constant."""
    discriminant: Mapping[str, Interval]
    """Correlation with independent axes of each of the other traits."""
    rungs: Mapping[str, Effect]
    """Candidates less worse songs, in deviations of the candidates."""
    real: Interval | None
    """Real songs less candidates, in deviations of the candidates; None where they have no scores."""
    transfer: Mapping[int, Mapping[str, Interval]]
    """The gain of the best of n by this axis on each axis and composite, in deviations; empty for witnesses."""
    judgement: Judgement


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of all axes."""

    n_songs: int
    n_prompts: int
    covariates: tuple[str, ...]
    """What is held constant in partial correlations."""
    axes: tuple[AxisAudit, ...]
    matrix: Mapping[str, Mapping[str, Interval]]
    """Correlation within prompts of every mined axis with every witness."""
    partial_matrix: Mapping[str, Mapping[str, Interval]]
    """The same with texture held constant."""


def independent_axes(facts: Sequence[AxisFacts], subject: AxisFacts, trait: str) -> tuple[str, ...]:
    """The axes of a trait that an axis is compared with.

    For a mined axis: witnesses of the trait that judge, or its diagnoses if none does. For a witness: mined axes.
    """
    if subject.is_witness:
        return tuple(fact.axis for fact in facts if fact.trait == trait and not fact.is_witness)
    witnesses = [fact for fact in facts if fact.trait == trait and fact.is_witness]
    judges = tuple(fact.axis for fact in witnesses if fact.role == "judge")
    return judges or tuple(fact.axis for fact in witnesses)


def audit_axes(facts: Sequence[AxisFacts], songs: AuditSongs, ns: Sequence[int]) -> Audit:
    """All statistics of validity of some axes; `ns` are the N of best-of-N."""
    texture = np.stack(list(songs.texture.values()), axis=1) if songs.texture else None
    targets = {fact.axis: songs.values[fact.axis] for fact in facts} | composite_columns(songs.values)
    mined_axes = [fact.axis for fact in facts if not fact.is_witness]
    witnesses = [fact.axis for fact in facts if fact.is_witness]

    def matrix(covariates: Float[np.ndarray, "song covariate"] | None) -> dict[str, dict[str, Interval]]:
        return {
            axis: {
                witness: within_correlation(
                    songs.values[axis], songs.values[witness], songs.prompts, covariates
                )
                for witness in witnesses
            }
            for axis in mined_axes
        }

    return Audit(
        n_songs=len(songs.prompts),
        n_prompts=len(set(songs.prompts)),
        covariates=tuple(songs.texture),
        axes=tuple(_audit_axis(facts, fact, songs, texture, targets, ns) for fact in facts),
        matrix=matrix(None),
        partial_matrix=matrix(texture),
    )


def composite_columns(values: AxisColumns) -> dict[str, Float[np.ndarray, " song"]]:
    """The composites W.harmony, W.rhythm, W.form and W.all of the songs; {} unless all have their witnesses."""
    witnesses = [*HARMONY_WITNESSES, *RHYTHM_WITNESSES]
    form = [axis for axis in (FORM_WITNESS,) if _is_usable(values, axis)]
    if not all(_is_usable(values, axis) for axis in witnesses):
        return {}
    composites = fit_composites(values, form).values(values)
    return {name: composites[name] for name in composites if name != ALL_TRAITS or len(composites) > 2}


def _is_usable(values: AxisColumns, axis: str) -> bool:
    return axis in values and bool(np.isfinite(values[axis]).all()) and float(np.ptp(values[axis])) > 0


def _audit_axis(
    facts: Sequence[AxisFacts],
    fact: AxisFacts,
    songs: AuditSongs,
    texture: Float[np.ndarray, "song covariate"] | None,
    targets: AxisColumns,
    ns: Sequence[int],
) -> AxisAudit:
    values, prompts = songs.values[fact.axis], songs.prompts
    axes = independent_axes(facts, fact, fact.trait)
    reliability = half_reliability((songs.halves[0][fact.axis], songs.halves[1][fact.axis]), prompts)
    convergent = partial = None
    agreement_without_noise = math.nan
    if axes:
        composite = trait_composite(songs.values, axes)
        convergent = within_correlation(values, composite, prompts)
        partial = within_correlation(values, composite, prompts, texture)
        halves = (trait_composite(songs.halves[0], axes), trait_composite(songs.halves[1], axes))
        agreement_without_noise = disattenuate(
            convergent.value, reliability.value, half_reliability(halves, prompts).value
        )
    rungs = {
        name: ladder_effect(values, worse.values[fact.axis], prompts, worse.prompts, worse.counterparts)
        for name, worse in songs.worse.items()
    }
    return AxisAudit(
        axis=fact.axis,
        trait=fact.trait,
        role=fact.role,
        reliability=reliability,
        convergent_axes=axes,
        convergent=convergent,
        agreement_without_noise=agreement_without_noise,
        partial=partial,
        discriminant=_discriminant(facts, fact, songs),
        rungs=rungs,
        real=real_difference(values, prompts, songs.real[fact.axis], songs.real_songs)
        if fact.axis in songs.real
        else None,
        transfer={} if fact.is_witness else {n: transfer_gains(values, targets, prompts, n) for n in ns},
        judgement=judge_axis(convergent, partial, rungs, len(set(prompts))),
    )


def _discriminant(facts: Sequence[AxisFacts], fact: AxisFacts, songs: AuditSongs) -> dict[str, Interval]:
    """The correlation with the independent axes of each other trait."""
    traits = dict.fromkeys(row.trait for row in facts if row.trait != fact.trait)
    composites = {
        trait: trait_composite(songs.values, axes)
        for trait in traits
        if (axes := independent_axes(facts, fact, trait))
    }
    return {
        trait: within_correlation(songs.values[fact.axis], composite, songs.prompts)
        for trait, composite in composites.items()
    }


def real_difference(
    candidates: Float[np.ndarray, " song"],
    prompts: Sequence[str],
    real: Float[np.ndarray, " window"],
    real_songs: Sequence[str],
) -> Interval | None:
    """Real songs less candidates, in deviations of the candidates, with an interval over songs and prompts.

    None where nothing is finite, or where the candidates are all the same.
    """
    usable, real_usable = np.isfinite(candidates), np.isfinite(real)
    deviation = float(candidates[usable].std(ddof=1)) if usable.sum() > 1 else 0.0
    if not (deviation > 0 and real_usable.any()):
        return None
    names = [prompt for prompt, flag in zip(prompts, usable, strict=True) if flag]
    real_names = [song for song, flag in zip(real_songs, real_usable, strict=True) if flag]
    return estimate_difference(
        estimate_mean(real[real_usable] / deviation, real_names),
        estimate_mean(candidates[usable] / deviation, names),
    ).interval()
