"""The report of an evaluation: one HTML file that contains its audio and works offline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffdpo.evaluation.band import Band
from diffdpo.evaluation.composites import ALL_TRAITS
from diffdpo.evaluation.effects import AxisEffect, too_few_prompts
from diffdpo.evaluation.verdict import Verdict
from diffdpo.evaluation.witness_report import WitnessReport
from diffdpo.report import plots as pictures
from diffdpo.report.cases import Case
from diffdpo.report.effect_rows import BAND_ENDS, forest, interval_in_sd
from diffdpo.report.figures import verdict_figures
from diffdpo.report.frontier import BEST_OF_N, Frontier, FrontierPoint, best_of_n_points, draw_frontier
from diffdpo.report.text import clock, format_signed, name, number, percent, typographic
from diffdpo.runs import atomic_write
from diffdpo.statistics import Interval
from diffdpo.types import Clip

PAGE_TEMPLATE = "page.html.j2"
MINED_MEAN = "the mean of the mined axes"
"""The change of a song without witnesses."""
CLIP_BYTES = 180_000
"""Size of one song of a comparison, before base64 makes it a third larger."""
LONG_SONG_BYTES = 2_400_000
CHANGE_RANGE = 2.0
"""Standard deviations at which the bar of one song's change is full."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two songs of one prompt and seed, one of each model, to be compared by ear."""

    prompt_id: str
    prompt_text: str
    sample_id: str
    baseline: Clip
    aligned: Clip
    baseline_scores: Mapping[str, float]
    aligned_scores: Mapping[str, float]
    standardised_change: float
    """In standard deviations of the baseline: of W.all, or the mean over the mined axes without witnesses."""
    case: Case = "worst"
    """What it is an example of."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the page as plain data. The page has no section for an empty field."""

    title: str
    facts: Mapping[str, str]
    """Key numbers: label to value."""
    effects: Sequence[AxisEffect]
    comparisons: Sequence[Comparison] = ()
    """Pairs of songs with players, in this order."""
    change_name: str = MINED_MEAN
    """What the change of a comparison is of."""
    verdict: Verdict | None = None
    witnesses: WitnessReport | None = None
    bands: Mapping[str, Band] = field(default_factory=dict)
    """Of real songs, by axis."""
    frontier: Sequence[FrontierPoint] = ()
    """Points of other models and settings; the witnesses add best-of-N of the base where there is none."""
    long_song: Clip | None = None
    long_song_caption: str = ""
    training: Sequence[Mapping[str, Any]] = ()
    """Rows of metrics.jsonl."""
    mining: Mapping[str, str] = field(default_factory=dict)
    """Facts about mining: label to value."""
    unpaired_prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompts without a pair: id to reason."""
    config_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    license: str = ""
    """Of the weights and of the audio, in one line."""


def write_report(path: Path, report: Report) -> None:
    atomic_write(path, render(report))


def render(report: Report) -> str:
    """The HTML of the report. Most of the time goes into encoding the songs: a second for ten seconds of sound."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": format_signed, "percent": percent, "clock": clock}
    environment.filters["typographic"] = typographic
    rises, falls = headline(report.effects)
    return environment.get_template(PAGE_TEMPLATE).render(
        report=report,
        rises=rises,
        falls=falls,
        tally=tally(report.effects),
        forest=forest(report.effects, report.bands),
        figures=verdict_figures(report.verdict, report.witnesses) if report.verdict else [],
        frontier=frontier_picture(report),
        cards=[card(comparison, report.effects) for comparison in report.comparisons],
        compared=max((e.effect.count + e.left_out for e in report.effects), default=len(report.comparisons)),
        long_song=voices({"Song": report.long_song}, LONG_SONG_BYTES)[0] if report.long_song else None,
        charts=charts(report.training),
        band_ends=BAND_ENDS,
        best_of_n=BEST_OF_N,
        smoothing=pictures.smoothing_width(len(report.training)),
        drift=drift(report.training),
    )


def frontier_picture(report: Report) -> Frontier | None:
    """The frontier with this model's gain; None without points and without the base's best-of-N."""
    if report.witnesses is None:
        return draw_frontier(report.frontier)
    points = list(report.frontier)
    if not any(point.method == BEST_OF_N for point in points):
        points += best_of_n_points(report.witnesses)
    gain = report.witnesses.composites[ALL_TRAITS]
    drift_numbers = report.verdict.numbers.get("drift", {}) if report.verdict else {}
    return draw_frontier(points, Interval(gain.mean, gain.low, gain.high), drift_numbers.get("kl"))


def headline(effects: Sequence[AxisEffect]) -> tuple[str, str]:
    """Two sentences: which axes rose beyond their interval, and which fell ("" if none did)."""
    if not effects:
        return "Nothing was compared.", ""
    if sentence := too_few_prompts(effects):
        return sentence.removesuffix("."), ""
    roles = {role: [e for e in effects if e.role == role] for role in ("mined", "judge")}
    better = [
        f"{sum(e.effect.direction == 'better' for e in group)} of {_count_text(len(group), role)}"
        for role, group in roles.items()
        if group
    ]
    falls = []
    for role in ("judge", "mined"):  # what is held out weighs more
        if names := [name(e.axis) for e in roles[role] if e.effect.direction == "worse"]:
            suffix = " beyond the interval" if role == "judge" else ""
            falls.append(f"{_count_text(len(names), role)} fell{suffix}: {', '.join(names)}")
    return f"Aligned is better on {' and on '.join(better)}", "; ".join(falls)


def tally(effects: Sequence[AxisEffect]) -> dict[str, list[tuple[str, str]]]:
    """The axes by direction, each with its change in standard deviations of the baseline, the largest first."""
    by_direction: dict[str, list[tuple[str, str]]] = {}
    for e in sorted(effects, key=lambda e: -abs(np.nan_to_num(interval_in_sd(e)[1]))):
        label = name(e.axis) if e.role == "mined" else f"{name(e.axis)} ({e.role})"
        by_direction.setdefault(e.effect.direction, []).append((label, format_signed(interval_in_sd(e)[1])))
    return by_direction


def _count_text(count: int, role: str) -> str:
    singular, plural = {"mined": ("mined axis", "mined axes"), "judge": ("judge", "judges")}[role]
    return f"{count} {singular if count == 1 else plural}"


@dataclass(frozen=True)
class Voice:
    """One recording of a card: label, sound and picture."""

    label: str
    source: str
    picture: pictures.Picture
    seconds: float


@dataclass(frozen=True)
class Score:
    axis: str
    name: str
    role: str
    baseline: float
    aligned: float
    change: float
    """Change in standard deviations of the baseline, 0 where the deviation is 0."""
    left: float
    width: float
    """The bar of the change, in percent."""
    decimals: int
    """Decimals that show a hundredth of a standard deviation."""


@dataclass(frozen=True)
class Card:
    comparison: Comparison
    voices: tuple[Voice, ...]
    scores: tuple[Score, ...]


def card(comparison: Comparison, effects: Sequence[AxisEffect]) -> Card:
    clips = {"Base": comparison.baseline, "Aligned": comparison.aligned}
    return Card(comparison, tuple(voices(clips, CLIP_BYTES)), tuple(_scores(comparison, effects)))


def voices(clips: Mapping[str, Clip], budget_bytes: int) -> list[Voice]:
    """Recordings by their label, at one loudness and with pictures on one scale."""
    loud_clips = pictures.match_loudness(list(clips.values()))
    return [
        Voice(label, pictures.embed(clip, budget_bytes), picture, clip.seconds)
        for label, clip, picture in zip(clips, loud_clips, pictures.draw_pictures(loud_clips), strict=True)
    ]


def _scores(comparison: Comparison, effects: Sequence[AxisEffect]) -> list[Score]:
    """The scores of both songs of a comparison, in the order of the effects."""
    scores = []
    for e in effects:
        baseline = comparison.baseline_scores.get(e.axis, math.nan)
        aligned = comparison.aligned_scores.get(e.axis, math.nan)
        spread = e.baseline_std if e.baseline_std > 0 else 0.0
        change = (aligned - baseline) / spread if spread else 0.0
        bar = 50 * max(-1.0, min(1.0, change / CHANGE_RANGE)) if math.isfinite(change) else 0.0
        decimals = min(6, max(0, 2 - round(math.log10(spread)))) if spread else 3
        left = 50 + min(0.0, bar)
        scores.append(
            Score(e.axis, name(e.axis), e.role, baseline, aligned, change, left, abs(bar), decimals)
        )
    return scores


def charts(rows: Sequence[Mapping[str, Any]]) -> list[pictures.Chart]:
    """The charts of training that have at least one number."""
    panels: list[tuple[str, dict[str, str], float | None]] = [
        ("Loss", {"loss": "loss"}, None),
        ("Margin of the winner, in logits", {"margin": "margin"}, 0.0),
        ("Accuracy: share of margins above zero", {"accuracy": "accuracy"}, 0.5),
        (
            "Error below the reference's",
            {"winner_gain": "winner", "loser_gain": "loser"},
            0.0,
        ),
        ("Gradient norm", {"grad_norm": "gradient norm"}, None),
    ]
    steps = _column(rows, "step")
    rows = [row for row, step in zip(rows, steps, strict=True) if math.isfinite(step)]
    steps = steps[np.isfinite(steps)]
    plots = []
    for title, keys, baseline in panels:
        series = {
            label: values for key, label in keys.items() if np.isfinite(values := _column(rows, key)).any()
        }
        if series:
            plots.append(pictures.chart(title, steps, series, baseline=baseline))
    return plots


def drift(rows: Sequence[Mapping[str, Any]]) -> str:
    """A warning if the winner's error ended above the reference's, which the accuracy hides; else ""."""
    gains = _column(rows, "winner_gain")
    gains = gains[np.isfinite(gains)]
    if not len(gains) or (last := float(gains[-pictures.smoothing_width(len(gains)) :].mean())) >= 0:
        return ""
    return (
        f"The winner's error ended {number(-last)} above the reference's: the model unlearned winners, too."
    )


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([float(row.get(key, math.nan)) for row in rows], dtype=np.float64)
