"""The numbers of a verdict as short texts: what the page shows in its box, and what tables have as rows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffdpo.evaluation.verdict import Verdict
from diffdpo.evaluation.witness_report import WitnessReport
from diffdpo.report.text import format_signed, number, percent


@dataclass(frozen=True)
class Figure:
    """One number with its name and what stands beside it, such as its interval."""

    label: str
    value: str
    detail: str = ""
    direction: str = ""
    """`better`, `worse` or `unclear` for the change of something that is better when it is higher."""


def verdict_figures(verdict: Verdict, witnesses: WitnessReport | None) -> list[Figure]:
    """What the verdict was reached by: composites, best-of-N, band, and the other evidence that there is."""
    return [*_witness_figures(witnesses), *_evidence_figures(verdict.numbers, witnesses)]


def _witness_figures(witnesses: WitnessReport | None) -> Iterator[Figure]:
    if witnesses is None:
        return
    for name, effect in witnesses.composites.items():
        detail = f"{_range(effect.low, effect.high)} SD"
        if at := witnesses.real.get(name):
            detail += f"; real songs {format_signed(at.value)}"
        yield Figure(name, format_signed(effect.mean), detail, effect.direction)
    if witnesses.n_equivalent is not None:
        value, _, interval = witnesses.n_equivalent.text().partition(" (")
        detail = f"{interval.removesuffix(')')}; of the base's songs" if interval else "of the base's songs"
        yield Figure("as good as the best of", value, detail)


def _evidence_figures(numbers: Mapping[str, Any], witnesses: WitnessReport | None) -> Iterator[Figure]:
    if band := numbers.get("band"):
        change = f"{format_signed(band['change'], '.3f')} ({_range(band['low'], band['high'], '.3f')})"
        direction = "" if witnesses is None or witnesses.band is None else witnesses.band.change.direction
        shares = f"{band['base']:.2f} \N{RIGHTWARDS ARROW} {band['aligned']:.2f}"
        yield Figure("in-band share, base and aligned", shares, change, direction)
    for name, row in numbers.get("diversity", {}).items():
        shares = f"{number(row['base'])} to {number(row['aligned'])}"
        yield Figure(f"diversity: {name}", signed_percent(row["change"]), shares)
    if spreads := numbers.get("spreads"):
        axis, row = min(spreads.items(), key=lambda item: item[1]["ratio"])
        detail = f"{_range(row['low'], row['high'], '.2f', signed=False)} of the base's: {axis}"
        yield Figure("smallest spread within prompts", number(row["ratio"], ".2f"), detail)
    if winners := numbers.get("held-out winners"):
        detail = f"times the reference's; limit {number(winners['limit'], 'g')}"
        yield Figure("error of held-out winners", number(winners["ratio"], ".2f"), detail)
    if drift := numbers.get("drift"):
        yield Figure("drift, nats a song", number(drift["kl"]), _drift_detail(drift))
    if lyrics := numbers.get("lyrics"):
        yield Figure(
            "phoneme error rate",
            format_signed(lyrics["change"], ".3f"),
            _range(lyrics["low"], lyrics["high"], ".3f"),
        )


def _drift_detail(drift: Mapping[str, Any]) -> str:
    """The interval, if there is one, and the limit."""
    parts = []
    if drift.get("low") is not None and drift.get("high") is not None:
        parts.append(_range(drift["low"], drift["high"], "#.3g", signed=False))
    limit = drift.get("limit")
    parts.append("no limit" if limit is None or math.isinf(limit) else f"limit {number(limit, 'g')}")
    return "; ".join(parts)


def signed_percent(share: float) -> str:
    """A change as a share of one in whole percent, with its sign."""
    return ("+" if share > 0 else "") + percent(share).replace("-", "\N{MINUS SIGN}")


def _range(low: float, high: float, style: str = ".2f", *, signed: bool = True) -> str:
    ends = (format_signed(end, style) if signed else number(end, style) for end in (low, high))
    return " to ".join(ends)
