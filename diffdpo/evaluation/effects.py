"""Paired comparison of two models on the same prompts and seeds."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffdpo.data.samples import SampleRow
from diffdpo.errors import DataError
from diffdpo.statistics import Effect, paired_effect

Role = Literal["mined", "judge"]


@dataclass(frozen=True)
class AxisEffect:
    """What alignment did to one axis."""

    axis: str
    role: Role
    """`mined` axes were optimised; a `judge` was held out and is the proof."""
    baseline_mean: float
    baseline_std: float
    aligned_mean: float
    effect: Effect
    """In the axis' own unit."""
    left_out: int = 0
    """Pairs without a finite score on both sides."""


@dataclass(frozen=True)
class Matched:
    """Two songs for the same prompt and seed."""

    sample_id: str
    prompt_id: str
    group: str
    baseline: Mapping[str, float]
    aligned: Mapping[str, float]


def match(baseline: Sequence[SampleRow], aligned: Sequence[SampleRow]) -> list[tuple[SampleRow, SampleRow]]:
    """Rows of two samples tables, side by side. DataError if seeds or sampler differ, or nothing is shared."""
    before, after = ({row.sample_id: row for row in rows} for rows in (baseline, aligned))
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise DataError("baseline and aligned share no sample: sample both from the same prompts file")
    for name in shared:
        for key in ("prompt_id", "seed", "frames", "sampling"):
            values = getattr(before[name], key), getattr(after[name], key)
            if values[0] != values[1]:
                raise DataError(
                    f"sample {name!r} was made with {key}={values[0]!r} and {values[1]!r}; "
                    "sample both models with the same prompts, seeds and sampler"
                )
    return [(before[name], after[name]) for name in shared]


def effects(
    pairs: Sequence[Matched], mined: Collection[str], axes: Sequence[str], resamples: int
) -> list[AxisEffect]:
    """One effect an axis, mined ones first. Intervals are over prompts."""
    found = []
    for axis in sorted(axes, key=lambda axis: (axis not in mined, axes.index(axis))):
        usable = [p for p in pairs if _finite(p.baseline.get(axis)) and _finite(p.aligned.get(axis))]
        if len(usable) < 2:
            continue
        before = np.array([p.baseline[axis] for p in usable], dtype=np.float64)
        after = np.array([p.aligned[axis] for p in usable], dtype=np.float64)
        found.append(
            AxisEffect(
                axis=axis,
                role="mined" if axis in mined else "judge",
                baseline_mean=float(before.mean()),
                baseline_std=float(before.std(ddof=1)),
                aligned_mean=float(after.mean()),
                effect=paired_effect(before, after, [p.group for p in usable], resamples=resamples),
                left_out=len(pairs) - len(usable),
            )
        )
    if not found:
        raise DataError("no axis has scores on both sides; run `diffdpo score` on both samples folders")
    return found


def standardised_change(pair: Matched, axes: Sequence[AxisEffect]) -> float:
    """Mean change of one song over the mined axes, in standard deviations of the baseline."""
    changes = [
        (pair.aligned[a.axis] - pair.baseline[a.axis]) / a.baseline_std
        for a in axes
        if a.role == "mined"
        and a.baseline_std > 0
        and _finite(pair.baseline.get(a.axis))
        and _finite(pair.aligned.get(a.axis))
    ]
    return float(np.mean(changes)) if changes else 0.0


def verdict(found: Sequence[AxisEffect]) -> str:
    """One plain sentence: what rose, what fell, and on whose word."""
    mined = [a for a in found if a.role == "mined"]
    judges = [a for a in found if a.role == "judge"]
    better = sum(a.effect.direction == "better" for a in mined)
    fell = [a.axis for a in mined if a.effect.direction == "worse"]
    parts = [
        f"Better on {better} of {len(mined)} mined axes" + (f", worse on {', '.join(fell)}" if fell else "")
    ]
    for a in judges:
        says = {"better": "rose", "worse": "fell", "unclear": "did not change beyond its interval"}
        parts.append(f"the held-out judge {a.axis} {says[a.effect.direction]}")
    return "; ".join(parts) + "."


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
