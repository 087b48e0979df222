"""The frontier as a picture: what a model gains of W.all against how far it has gone from the base.

Best-of-N of the base is the curve to beat. Points of other models and settings come from a file of
`tools/bench_frontier.py`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdpo.errors import DataError, reason
from diffdpo.evaluation.best_of_n import best_of_n_kl
from diffdpo.evaluation.composites import ALL_TRAITS
from diffdpo.evaluation.witness_report import WitnessReport
from diffdpo.report import plots
from diffdpo.report.text import format_signed, number
from diffdpo.statistics import Interval
from diffdpo.text_files import read_text

BEST_OF_N = "best of N"
"""The method of the base's own songs, chosen: the curve."""

MIN_TICK_DISTANCE = 10.0
"""Of two ticks of the divergence, in percent of the width."""


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """A model or a setting on the frontier."""

    name: str
    method: str
    kl: float | None
    """KL divergence from the base, in nats a song; None where it was not measured."""
    composites: Mapping[str, Interval]
    in_band: float | None = None
    """The in-band share."""
    in_band_change: Interval | None = None
    """Its change from the base's."""
    passed: bool | None = None
    """The verdict; None where none was reached."""

    @property
    def gain(self) -> Interval:
        """The gain of W.all; NaN without one."""
        return self.composites.get(ALL_TRAITS, Interval(math.nan, math.nan, math.nan))

    @property
    def gain_text(self) -> str:
        """The gain with its interval, in standard deviations."""
        return interval_text(self.gain)

    @property
    def in_band_text(self) -> str:
        """The in-band share with its change; a dash where it was not measured."""
        if self.in_band is None:
            return number(math.nan)
        change = "" if self.in_band_change is None else f", {interval_text(self.in_band_change, '.3f')}"
        return number(self.in_band, ".2f") + change


def read_frontier(path: Path) -> tuple[FrontierPoint, ...]:
    """The points of a file. DataError if it is missing or damaged.

    A point of best-of-N without a KL divergence has log N - (N - 1) / N.
    """
    try:
        return tuple(_point(row) for row in json.loads(read_text(path))["points"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: no file of a frontier ({reason(error)}); write it with tools/bench_frontier.py"
        ) from None


def _point(row: Mapping[str, Any]) -> FrontierPoint:
    method, kl, n = str(row["method"]), row.get("kl"), row.get("n")
    band, verdict = row.get("in_band") or {}, row.get("verdict") or {}
    share = band.get("share", band.get("mean"))
    if n is not None and method.lower().replace("-", " ").replace("_", " ").startswith("best of"):
        method = BEST_OF_N
        kl = best_of_n_kl(float(n)) if kl is None else kl
    return FrontierPoint(
        name=str(row["name"]),
        method=method,
        kl=None if kl is None else float(kl),
        composites={name: _interval(effect) for name, effect in row["composites"].items()},
        in_band=None if share is None else float(share),
        in_band_change=_interval(band["change"]) if band.get("change") else None,
        passed=verdict.get("passed"),
    )


def _interval(row: Mapping[str, Any]) -> Interval:
    """Mean and interval of a row; NaN for what is absent or null."""
    values = (row.get(key) for key in ("mean", "low", "high"))
    return Interval(*(math.nan if value is None else float(value) for value in values))


def best_of_n_points(witnesses: WitnessReport) -> tuple[FrontierPoint, ...]:
    """The base's own curve from its stored candidates."""
    return tuple(
        FrontierPoint(name=f"best of {p.n}", method=BEST_OF_N, kl=p.kl, composites={ALL_TRAITS: p.gain})
        for p in witnesses.best_of_n
    )


@dataclass(frozen=True)
class Dot:
    """A point of the picture, in percent of its width and height."""

    point: FrontierPoint
    x: float
    marks: tuple[float, float, float]
    """Heights of the gain and of the ends of its interval."""
    method: int
    """Number of its method, from 0."""

    @property
    def label(self) -> str:
        """The point in words."""
        return f"{self.point.name}: {self.point.gain_text} SD at {number(self.point.kl or 0.0)} nats"


@dataclass(frozen=True)
class Frontier:
    """The picture: W.all upwards, the square root of the KL divergence to the right."""

    points: tuple[FrontierPoint, ...]
    """Those with a gain, whether or not their divergence is measured."""
    methods: tuple[str, ...]
    dots: tuple[Dot, ...]
    curve: str
    """SVG path of best-of-N in a box of 100 x 100; empty without it."""
    area: str
    """SVG path of the curve's intervals."""
    model: Interval | None
    """This model's gain: a line across the picture."""
    model_marks: tuple[float, float, float] | None
    """Its height, and those of the ends of its interval."""
    model_x: float | None
    """Its place; None without a measured divergence."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    zero: float

    @property
    def has_verdicts(self) -> bool:
        """Whether a verdict was reached on a point."""
        return any(point.passed is not None for point in self.points)

    @property
    def aria_label(self) -> str:
        """The picture in words."""
        curve = [dot.label for dot in self.dots if dot.point.method == BEST_OF_N]
        parts = [f"Choosing from the base's songs: {'; '.join(curve)}"] if curve else []
        if self.model is not None:
            parts.append(f"this model: {interval_text(self.model)} SD")
        if count := len(self.points) - len(curve):
            parts.append(f"{count} more points, in the table below")
        return ". ".join(parts)


def draw_frontier(
    points: Sequence[FrontierPoint], model: Interval | None = None, model_kl: float | None = None
) -> Frontier | None:
    """The picture of points and of this model; None without a point that has a gain."""
    usable = tuple(p for p in points if math.isfinite(p.gain.value))
    if not usable:
        return None
    methods = tuple(dict.fromkeys(p.method for p in sorted(usable, key=lambda p: p.method != BEST_OF_N)))
    placed_points = sorted((p for p in usable if p.kl is not None), key=lambda p: p.kl or 0.0)
    x, x_ticks = _divergence_scale([p.kl or 0.0 for p in placed_points] + [model_kl or 0.0])
    y, y_ticks = _gain_scale([p.gain for p in placed_points] + ([] if model is None else [model]))
    dots = tuple(Dot(p, x(p.kl or 0.0), _marks(y, p.gain), methods.index(p.method)) for p in placed_points)
    curve = [d for d in dots if d.point.method == BEST_OF_N]
    upper, lower = ([(d.x, d.marks[end]) for d in curve] for end in (2, 1))
    return Frontier(
        points=usable,
        methods=methods,
        dots=dots,
        curve=_path([(d.x, d.marks[0]) for d in curve]),
        area=_path([*upper, *reversed(lower)]),
        model=model,
        model_marks=None if model is None else _marks(y, model),
        model_x=None if model_kl is None else x(model_kl),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        zero=y(0.0),
    )


Scale = tuple[Callable[[float], float], tuple[tuple[float, str], ...]]
"""Where a value lies in percent, and the ticks."""


def _divergence_scale(values: Sequence[float]) -> Scale:
    """Square roots, so that small divergences are told apart beside large ones."""
    largest = 1.05 * max(*values, 0.1)

    def at(value: float) -> float:
        return round(100 * math.sqrt(max(value, 0.0) / largest), 2)

    steps = [digit * 10.0**power for power in range(-2, 8) for digit in (1, 2, 5)]
    ticks = [0.0]
    for tick in steps:
        if tick <= largest and at(tick) - at(ticks[-1]) >= MIN_TICK_DISTANCE:
            ticks.append(tick)
    return at, tuple((at(tick), number(tick, "g")) for tick in ticks)


def _gain_scale(gains: Sequence[Interval]) -> Scale:
    ends = [end for gain in gains for end in _ends(gain)] + [0.0, 0.2]
    margin = 0.06 * (max(ends) - min(ends))
    low, high = min(ends) - margin, max(ends) + margin

    def at(value: float) -> float:
        return round(100 * (high - value) / (high - low), 2)

    return at, tuple((at(tick), format_signed(tick, "g")) for tick in plots.ticks(low, high, 5))


def _ends(gain: Interval) -> tuple[float, float, float]:
    """Value, low and high; the value in the place of an end that is not finite."""
    low, high = (end if math.isfinite(end) else gain.value for end in (gain.low, gain.high))
    return gain.value, low, high


def _marks(y: Callable[[float], float], gain: Interval) -> tuple[float, float, float]:
    value, low, high = (y(end) for end in _ends(gain))
    return value, low, high


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x},{y}" for x, y in corners) if len(corners) > 1 else ""


def interval_text(interval: Interval, style: str = ".2f") -> str:
    """A change with its interval: `+0.21 (+0.14 to +0.28)`, without what is not finite."""
    value, low, high = (format_signed(v, style) for v in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})" if math.isfinite(interval.low + interval.high) else value
