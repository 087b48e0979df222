"""The command `power`: how many prompts an effect needs, and which effect a number of prompts can show; or how many
votes and raters a preference needs.

What decides is the spread of the paired difference between prompts, from an earlier comparison or as a number. It
is an estimate itself: from 24 prompts it is right to about 15 %, and so is all in the table.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError, DataError
from diffdpo.runs import read_json
from diffdpo.statistics import MIN_CLUSTERS
from diffdpo.statistics_power import (
    MAX_PROMPTS,
    MAX_VOTES,
    design_effect,
    prompts_for,
    smallest_effect,
    votes_for,
)


@dataclass(frozen=True)
class PowerSettings:
    """What is asked of the table. Effects are in standard deviations of the baseline's songs."""

    effects: tuple[float, ...] = (0.1, 0.2, 0.5)
    """Effects whose number of prompts is wanted."""
    prompts: tuple[int, ...] = (8, 12, 24, 48, 96)
    """Numbers of prompts whose smallest effect is wanted."""
    power: float = 0.8
    """Probability that an effect of this size is told from zero."""
    axes: int = 1
    """Axes that are judged together: the level is divided by their number, Holm's strictest step."""

    def __post_init__(self) -> None:
        check_range(self, "power", above=0, below=1, prefix="--")
        check_range(self, "axes", low=1, prefix="--")
        if any(effect <= 0 for effect in self.effects):
            raise ValueError(f"--effect has to be above 0, got {min(self.effects):g}")
        if any(count < MIN_CLUSTERS for count in self.prompts):
            raise ValueError(
                f"--prompts has to be {MIN_CLUSTERS} or more, got {min(self.prompts)}: fewer decide nothing"
            )


def power_table(deviations: Mapping[str, float], settings: PowerSettings) -> str:
    """A row for each spread between prompts: prompts for each effect, smallest effect of each number."""
    level = 0.05 / settings.axes
    head = ["", "spread", *(f"prompts for {effect:g}" for effect in settings.effects)]
    head += [f"smallest with {count}" for count in settings.prompts]
    rows = [head, ["---"] * len(head)]
    for name, deviation in deviations.items():
        counts = [prompts_for(e, deviation, power=settings.power, level=level) for e in settings.effects]
        effects = [smallest_effect(deviation, n, power=settings.power, level=level) for n in settings.prompts]
        rows.append(
            [name, f"{deviation:.2f}"]
            + [f"{count}" if count < MAX_PROMPTS else f"over {MAX_PROMPTS}" for count in counts]
            + [f"{effect:.2f}" for effect in effects]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def report_deviations(folder: Path) -> dict[str, float]:
    """The spread of each axis' paired difference between prompts, from the report of `diffdpo evaluate`.

    In standard deviations of the baseline's songs. Axes without spread are left out. DataError for fewer than 3
    prompts, or a folder without a report.
    """
    path = folder / "report.json" if folder.is_dir() else folder
    report = read_json(path)
    try:
        axes, samples = [row["axis"] for row in report["axes"]], report["samples"]
        values = {axis: _differences(samples, axis) for axis in axes}
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: no report of `diffdpo evaluate`") from None
    deviations = {axis: _deviation(*values[axis]) for axis in axes}
    if not any(np.isfinite(list(deviations.values()))):
        raise DataError(f"{path}: fewer than 3 prompts; give the spread with --sd instead")
    return {axis: value for axis, value in deviations.items() if np.isfinite(value) and value > 0}


def _differences(samples: list[dict[str, Any]], axis: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rows = [
        (row["baseline"][axis], row["aligned"][axis], row["group"])
        for row in samples
        if row["baseline"].get(axis) is not None and row["aligned"].get(axis) is not None
    ]
    baseline, aligned = (np.array([row[side] for row in rows], dtype=np.float64) for side in (0, 1))
    return baseline, aligned, [row[2] for row in rows]


def _deviation(baseline: np.ndarray, aligned: np.ndarray, groups: list[str]) -> float:
    """Deviation between prompts of the mean paired difference, in deviations of the baseline; NaN if unknown."""
    member = np.unique(np.array(groups), return_inverse=True)[1]
    if len(baseline) < 2 or member.max() < 2 or baseline.std(ddof=1) == 0:
        return float("nan")
    means = np.bincount(member, weights=aligned - baseline) / np.bincount(member)
    return float(means.std(ddof=1) / baseline.std(ddof=1))


def compute_power(source: str, deviation: float | None, settings: PowerSettings) -> str:
    """The table for an evaluation's folder or for a spread. ConfigError unless exactly one of them is given."""
    if bool(source) == (deviation is not None):
        raise ConfigError("name a folder of `diffdpo evaluate`, or the spread between prompts with --sd")
    if deviation is not None and not deviation > 0:
        raise ConfigError(f"--sd has to be above 0, got {deviation:g}")
    deviations = {"--sd": deviation} if deviation is not None else report_deviations(Path(source))
    return power_table(deviations, settings)


@dataclass(frozen=True)
class VotePowerSettings:
    """What is asked of the table of votes."""

    shares: tuple[float, ...] = (0.55, 0.6, 0.65, 0.7, 0.75)
    """True shares of decisive votes for the better of two systems."""
    per_rater: int = 40
    """Votes that each rater gives; 40 take about half an hour."""
    correlation: float = 0.05
    """Correlation of the answers of one rater (ICC)."""
    ties: float = 0.1
    """Share of votes that are ties, which decide nothing."""
    power: float = 0.8
    comparisons: int = 1
    """Comparisons that are judged together: the level is divided by their number."""

    def __post_init__(self) -> None:
        if any(not 0.5 < share < 1 for share in self.shares):
            raise ValueError(f"--share has to be above 0.5 and below 1, got {min(self.shares):g}")
        for name, option in (("per_rater", "per-rater"), ("comparisons", "axes")):
            if getattr(self, name) < 1:
                raise ValueError(f"--{option} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"--icc must be in [0, 1], got {self.correlation}")
        if not 0 <= self.ties < 1:
            raise ValueError(f"--ties must be in [0, 1), got {self.ties}")
        check_range(self, "power", above=0, below=1, prefix="--")


def vote_power_table(settings: VotePowerSettings) -> str:
    """A row for each true share: decisive votes, the first number and the robust one, all votes, and raters."""
    level = 0.05 / settings.comparisons
    effect = design_effect(settings.per_rater, settings.correlation)
    head = ["share", "decisive votes", "robust", f"votes, with {settings.ties:.0%} ties and ICC", "raters"]
    rows = [head, ["---"] * len(head)]
    for share in settings.shares:
        first, robust = votes_for(share, power=settings.power, level=level)
        if robust >= MAX_VOTES:
            rows.append([f"{share:g}", *[f"over {MAX_VOTES}"] * 3, ""])
            continue
        votes = math.ceil(robust * effect / (1 - settings.ties))
        raters = math.ceil(votes / settings.per_rater)
        rows.append([f"{share:g}", f"{first}", f"{robust}", f"{votes}", f"{raters}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
