"""Efficiency and winner change over distance from the reference, one line a family, as SVG by hand."""

import math
from collections.abc import Mapping, Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, told apart by colour-blind eyes too."""
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 210, 46, 26, 62
TICKS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
Point = tuple[float, float]


def panel(
    index: int, title: str, lines: Mapping[str, Sequence[Point]], low: float, high: float, step: float
) -> str:
    """One plot with a logarithmic axis of KL; what lies outside is left out."""
    left = LEFT + index * (WIDTH + GAP)

    def x(kl: float) -> float:
        return left + WIDTH * math.log(kl / TICKS[0]) / math.log(TICKS[-1] / TICKS[0])

    def y(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    parts = [f'<text x="{left}" y="{TOP - 9}" font-weight="bold">{title}</text>']
    for tick in TICKS:
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{TOP + HEIGHT}" class="grid"/>'
        )
        parts.append(f'<text x="{x(tick):.1f}" y="{TOP + HEIGHT + 14}" text-anchor="middle">{tick:g}</text>')
    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        parts.append(
            f'<line x1="{left}" y1="{y(value):.1f}" x2="{left + WIDTH}" y2="{y(value):.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{left - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for colour, points in zip(COLOURS, lines.values(), strict=False):
        inside = [p for p in points if TICKS[0] <= p[0] <= TICKS[-1] and low <= p[1] <= high]
        path = " ".join(f"{x(kl):.1f},{y(value):.1f}" for kl, value in inside)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour}"/>' for a, b in inside]
    parts.append(
        f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 28}" text-anchor="end">KL from the reference</text>'
    )
    return "\n".join(parts)


def picture(panels: Sequence[tuple[str, Mapping[str, Sequence[Point]], tuple[float, float, float]]]) -> str:
    """Plots side by side, (title, lines, (lowest, highest, step)) each, with one legend below."""
    names = list(panels[0][1])
    width = LEFT + len(panels) * (WIDTH + GAP)
    rows = math.ceil(len(names) / 4)
    below = TOP + HEIGHT + 48
    legend = []
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        left, top = LEFT + (i % 4) * (width - LEFT) / 4, below + 16 * (i // 4)
        legend.append(f'<rect x="{left:.0f}" y="{top - 9}" width="14" height="9" fill="{colour}"/>')
        legend.append(f'<text x="{left + 19:.0f}" y="{top}">{name}</text>')
    plots = [panel(i, title, lines, *scale) for i, (title, lines, scale) in enumerate(panels)]
    height = below + 16 * rows
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            'font-size="11"><style>.grid{stroke:#ddd}</style>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *plots,
            *legend,
            "</svg>",
        ]
    )
