"""Draws the plot of tools/bench_toy.py, curves over KL from the reference with a colour a family, as SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""The palette of Okabe and Ito, which colour-blind readers can distinguish."""
WIDTH, HEIGHT, LEFT, TOP, ACROSS, DOWN = 300, 180, 46, 26, 62, 66
TICKS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One plot: a line of (KL, value) for each family; `scale` is (lowest, highest, step) of the value axis."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    scale: tuple[float, float, float]


def plot(panel: Panel, left: float, top: float) -> str:
    """The SVG elements of a panel with a logarithmic axis of KL, without points outside the axes."""
    low, high, step = panel.scale

    def x(kl: float) -> float:
        return left + WIDTH * math.log(kl / TICKS[0]) / math.log(TICKS[-1] / TICKS[0])

    def y(value: float) -> float:
        return top + HEIGHT * (high - value) / (high - low)

    bottom, right = top + HEIGHT, left + WIDTH
    parts = [f'<text x="{left}" y="{top - 9}" font-weight="bold">{panel.title}</text>']
    for tick in TICKS:
        parts.append(f'<path d="M{x(tick):.1f} {top}V{bottom}" class="grid"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    for value in (low + k * step for k in range(round((high - low) / step) + 1)):
        parts.append(f'<path d="M{left} {y(value):.1f}H{right}" class="grid"/>')
        parts.append(f'<text x="{left - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    for colour, points in zip(COLOURS, panel.lines.values(), strict=False):
        inside = [p for p in points if TICKS[0] <= p[0] <= TICKS[-1] and low <= p[1] <= high]
        path = " ".join(f"{x(kl):.1f},{y(value):.1f}" for kl, value in inside)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour}"/>' for a, b in inside]
    parts.append(f'<text x="{right}" y="{bottom + 28}" text-anchor="end">KL from the reference</text>')
    return "\n".join(parts)


def panels_svg(rows: Sequence[Sequence[Panel]]) -> str:
    """An SVG of panels in rows with one legend below."""
    names = list(rows[0][0].lines)
    width = LEFT + max(len(row) for row in rows) * (WIDTH + ACROSS)
    legend_top = TOP + len(rows) * (HEIGHT + DOWN) + 4
    parts = [
        plot(panel, LEFT + i * (WIDTH + ACROSS), TOP + j * (HEIGHT + DOWN))
        for j, row in enumerate(rows)
        for i, panel in enumerate(row)
    ]
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        left, top = LEFT + (i % 4) * (width - LEFT) // 4, legend_top + 16 * (i // 4)
        parts.append(f'<rect x="{left}" y="{top - 9}" width="14" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{left + 19}" y="{top}">{name}</text>')
    height = legend_top + 16 * math.ceil(len(names) / 4)
    svg_start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11"><style>.grid{stroke:#ddd}</style><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([svg_start, *parts, "</svg>\n"])
