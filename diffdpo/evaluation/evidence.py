"""Evidence for a verdict from paired songs with their scores."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from diffdpo.evaluation.band import BAND_WITNESSES, WitnessBands, band_change
from diffdpo.evaluation.composites import WitnessValues
from diffdpo.evaluation.diversity import DiversityChange, spread_changes
from diffdpo.evaluation.effects import AxisEffect, PairedSample
from diffdpo.evaluation.verdict import Evidence
from diffdpo.statistics import Interval

WINNER_ERROR = "winner_error_ratio"
"""The end of the name, in a training's metrics, of the held-out winners' error in that of the reference."""


def witness_values(
    pairs: Sequence[PairedSample], axes: Collection[str]
) -> tuple[WitnessValues, WitnessValues]:
    """The values of some axes of the base's songs and of the aligned model's, in the order of the pairs.

    Axes without any score are left out; NaN where a song has none.
    """
    sides = []
    for name in ("baseline", "aligned"):
        columns = {
            axis: np.array([getattr(pair, name).get(axis, np.nan) for pair in pairs], dtype=np.float64)
            for axis in axes
        }
        sides.append({axis: values for axis, values in columns.items() if np.isfinite(values).any()})
    return sides[0], sides[1]


def gather_evidence(
    pairs: Sequence[PairedSample],
    axis_effects: Sequence[AxisEffect],
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    bands: WitnessBands | None = None,
    diversity: Mapping[str, DiversityChange] | None = None,
    winner_error: float | None = None,
    drift: Interval | None = None,
) -> Evidence:
    """The evidence that there is: the changes of judges, in-band shares, diversity, held-out winners.

    `metrics` are the rows of the training, `bands` those of real songs, `diversity` the measures on embeddings.
    `winner_error` stands in where the training held no pairs out. What a piece needs and is not there leaves the
    piece out.
    """
    base, aligned = witness_values(pairs, BAND_WITNESSES)
    prompts = [pair.group for pair in pairs]
    witnesses = set(base) & set(aligned)
    held_out = held_out_winner_error(metrics)
    has_band = bands is not None and witnesses.issuperset(BAND_WITNESSES)
    return Evidence(
        judges={a.axis: a.effect for a in axis_effects if a.role == "judge"},
        band=band_change(base, aligned, prompts, bands) if has_band and bands is not None else None,
        diversity=diversity or None,
        spreads=spread_changes(base, aligned, prompts) or None,
        winner_error=winner_error if held_out is None else held_out,
        has_winners=any("winner_error" in row for row in metrics),
        drift=drift,
    )


def held_out_winner_error(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """The newest error of winners that were not trained on, in that of the reference; None if there is none."""
    for row in reversed(metrics):
        for name, value in row.items():
            if name.endswith(WINNER_ERROR) and value is not None:
                return float(value)
    return None
