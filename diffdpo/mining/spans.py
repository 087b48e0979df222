"""Where in time a preference lies: stretches in which the winner's windows score higher than the loser's."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from diffdpo.checks import check_range
from diffdpo.mining.base import mean_margin
from diffdpo.mining.values import Pair

TimeSpan = tuple[float, float]
WindowScores = Mapping[TimeSpan, Mapping[str, float]]
"""Of one song: for each window (start, stop) in seconds its value on every axis that was scored there."""


@dataclass(frozen=True)
class SpanConfig:
    """Thresholds of spans: the stretches in which the winner is clearly better.

    A defect of a few seconds is lost in the mean over a song; with a span an objective can weigh its frames more.
    """

    min_margin: float = 1.0
    """Least lead of the winner within a span, in standard deviations of all windows of the two songs."""
    max_gap_s: float = 1.0
    """Spans closer than this are one."""
    min_s: float = 1.0
    """Spans shorter than this are noise."""

    def __post_init__(self) -> None:
        check_range(self, "min_margin", above=0, prefix="spans.")
        check_range(self, "max_gap_s", "min_s", low=0, prefix="spans.")


def window_spread(songs: Iterable[WindowScores]) -> dict[str, float]:
    """On each axis the standard deviation of all windows of some songs; 0 where they are all alike."""
    values: dict[str, list[float]] = {}
    for windows in songs:
        for scores in windows.values():
            for axis, value in scores.items():
                if math.isfinite(value):
                    values.setdefault(axis, []).append(value)
    return {axis: _std(axis_values) for axis, axis_values in values.items()}


def find_spans(
    pair: Pair,
    winner: WindowScores,
    loser: WindowScores,
    weights: Mapping[str, float],
    config: SpanConfig,
) -> tuple[TimeSpan, ...]:
    """Stretches in which the winner leads on the pair's axis, or else in the weighted mean of the pair's axes.

    Windows at the same place in both songs are compared, each axis in units of its standard deviation over both.
    Windows overlap, so a moment's lead is the mean over the windows that hold it: a defect is found more closely
    than by the length of a window. Axes that have no windows, or are level throughout, do not count. No span: the
    whole song.
    """
    spread = window_spread([winner, loser])
    axes = [axis for axis in ([pair.axis] if pair.axis else pair.margins) if spread.get(axis, 0.0) > 0]
    leads = {}
    for window in winner.keys() & loser.keys():
        lead = {
            axis: (winner[window][axis] - loser[window][axis]) / spread[axis]
            for axis in axes
            if axis in winner[window] and axis in loser[window]
        }
        if lead and all(math.isfinite(value) for value in lead.values()):
            leads[window] = mean_margin(lead, weights)
    lead_cells = [cell for cell, lead in moment_leads(leads) if lead >= config.min_margin]
    return tuple(
        span for span in join_spans(lead_cells, config.max_gap_s) if span[1] - span[0] >= config.min_s
    )


def moment_leads(leads: Mapping[TimeSpan, float]) -> list[tuple[TimeSpan, float]]:
    """The stretches between neighbouring edges of windows, each with the mean of the windows that hold it."""
    edges = sorted({edge for window in leads for edge in window})
    cells = []
    for start, stop in pairwise(edges):
        cell_leads = [lead for (begin, end), lead in leads.items() if begin <= start and stop <= end]
        if cell_leads:
            cells.append(((start, stop), math.fsum(cell_leads) / len(cell_leads)))
    return cells


def join_spans(spans: Iterable[TimeSpan], max_gap_s: float) -> list[TimeSpan]:
    """Spans in order, those that touch or lie closer than `max_gap_s` joined."""
    joined_spans: list[TimeSpan] = []
    for start, stop in sorted(spans):
        if joined_spans and start - joined_spans[-1][1] <= max_gap_s:
            joined_spans[-1] = (joined_spans[-1][0], max(stop, joined_spans[-1][1]))
        else:
            joined_spans.append((start, stop))
    return joined_spans


def _std(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return std if std > 1e-9 * max(1.0, abs(mean)) else 0.0
