"""Paired comparison of two models on the same prompts and seeds."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diffdpo.data.samples import SampleRow
from diffdpo.errors import DataError
from diffdpo.statistics import MIN_CLUSTERS, Effect, paired_effect

Role = Literal["mined", "judge", "diagnosis"]
ROLES: tuple[Role, ...] = ("mined", "judge", "diagnosis")


@dataclass(frozen=True)
class AxisEffect:
    """The change of one axis between the baseline and the aligned model."""

    axis: str
    role: Role
    """`mined` for an axis that was optimised, `judge` for one that was held out as evidence, `diagnosis` for one
    that was held out and is not shown to be valid: it is watched, and decides nothing."""
    baseline_mean: float
    baseline_std: float
    aligned_mean: float
    effect: Effect
    """The paired difference, in the unit of the axis."""
    left_out: int = 0
    """Pairs without a finite score on both sides."""


@dataclass(frozen=True)
class PairedSample:
    """The scores of two songs of one prompt and seed, one of each model, by axis."""

    sample_id: str
    prompt_id: str
    group: str
    baseline: Mapping[str, float]
    aligned: Mapping[str, float]


FREE_SAMPLING = ("batch", "compile", "knobs", "steering", "reward_guidance")
"""Keys of `sampling` in which two songs of a pair may differ: what changes no song, and what is compared."""


def _conditions(row: SampleRow) -> dict[str, Any]:
    """What two songs of a pair must have in common. A key that an older table lacks counts as off."""
    sampling = json.loads(row.sampling)
    return {
        **{key: getattr(row, key) for key in ("prompt_id", "seed", "frames")},
        **{f"sampling.{key}": value for key, value in sampling.items() if key not in FREE_SAMPLING},
    }


def pair_rows(
    baseline: Sequence[SampleRow], aligned: Sequence[SampleRow]
) -> list[tuple[SampleRow, SampleRow]]:
    """Rows of two samples tables in pairs by sample id. DataError if none is shared, or seeds or sampler differ."""
    baseline_rows, aligned_rows = ({row.sample_id: row for row in rows} for rows in (baseline, aligned))
    sample_ids = sorted(baseline_rows.keys() & aligned_rows.keys())
    if not sample_ids:
        raise DataError("baseline and aligned share no sample: sample both from the same prompts file")
    for name in sample_ids:
        first, second = (_conditions(rows[name]) for rows in (baseline_rows, aligned_rows))
        for key in sorted(first.keys() | second.keys()):
            values = first.get(key), second.get(key)
            if values[0] != values[1] and any(values):
                raise DataError(
                    f"sample {name!r} was made with {key}={values[0]!r} and {values[1]!r}; "
                    "sample both models with the same prompts, seeds and sampler"
                )
    return [(baseline_rows[name], aligned_rows[name]) for name in sample_ids]


def effects(
    pairs: Sequence[PairedSample],
    mined_axes: Collection[str],
    axes: Sequence[str],
    diagnoses: Collection[str] = (),
) -> list[AxisEffect]:
    """The effect of each axis with intervals over prompts: mined axes, then judges, then diagnoses.

    DataError without a scored axis.
    """
    results = []
    roles: dict[str, Role] = {
        axis: "mined" if axis in mined_axes else "diagnosis" if axis in diagnoses else "judge"
        for axis in axes
    }
    for axis in sorted(axes, key=lambda axis: (ROLES.index(roles[axis]), axes.index(axis))):
        usable = [p for p in pairs if _finite(p.baseline.get(axis)) and _finite(p.aligned.get(axis))]
        if len(usable) < 2:
            continue
        baseline = np.array([p.baseline[axis] for p in usable], dtype=np.float64)
        aligned = np.array([p.aligned[axis] for p in usable], dtype=np.float64)
        results.append(
            AxisEffect(
                axis=axis,
                role=roles[axis],
                baseline_mean=float(baseline.mean()),
                baseline_std=float(baseline.std(ddof=1)),
                aligned_mean=float(aligned.mean()),
                effect=paired_effect(baseline, aligned, [p.group for p in usable]),
                left_out=len(pairs) - len(usable),
            )
        )
    if not results:
        raise DataError("no axis has scores on both sides; run `diffdpo score` on both samples folders")
    return results


def standardised_change(pair: PairedSample, axis_effects: Sequence[AxisEffect]) -> float:
    """Mean change of one song over the mined axes, in standard deviations of the baseline."""
    changes = [
        (pair.aligned[a.axis] - pair.baseline[a.axis]) / a.baseline_std
        for a in axis_effects
        if a.role == "mined"
        and a.baseline_std > 0
        and _finite(pair.baseline.get(a.axis))
        and _finite(pair.aligned.get(a.axis))
    ]
    return float(np.mean(changes)) if changes else 0.0


def too_few_prompts(axis_effects: Sequence[AxisEffect]) -> str:
    """A sentence if no axis was compared on enough prompts for a verdict; else ""."""
    count = max((a.effect.clusters for a in axis_effects), default=0)
    if count >= MIN_CLUSTERS:
        return ""
    prompts = "1 prompt" if count == 1 else f"{count} prompts"
    return f"Unclear: {prompts}, and a verdict needs {MIN_CLUSTERS}."


def verdict(axis_effects: Sequence[AxisEffect]) -> str:
    """One sentence: which mined axes rose or fell, and what the judges did."""
    if sentence := too_few_prompts(axis_effects):
        return sentence
    mined_effects = [a for a in axis_effects if a.role == "mined"]
    judges = [a for a in axis_effects if a.role == "judge"]
    better = sum(a.effect.direction == "better" for a in mined_effects)
    worse = [a.axis for a in mined_effects if a.effect.direction == "worse"]
    parts = [
        f"Better on {better} of {len(mined_effects)} mined axes"
        + (f", worse on {', '.join(worse)}" if worse else "")
    ]
    for a in judges:
        phrases = {"better": "rose", "worse": "fell", "unclear": "did not change beyond its interval"}
        parts.append(f"the held-out judge {a.axis} {phrases[a.effect.direction]}")
    return "; ".join(parts) + "."


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
