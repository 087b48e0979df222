"""Draws the plot of tools/bench/sampling_curve.py, quality over network passes with a line a solver, as SVG."""

import math
import re
from typing import Any

import numpy as np

CURVES = {
    "euler": ("#888", r"euler-\d+"), "dpmpp_2m": ("#090", r"dpmpp-\d+"), "midpoint": ("#c60", r"midpoint-\d+"),
    "adams_bashforth": ("#06c", r"ab-(\d|12)"),
    "adams_bashforth, 8 steps, guidance_every 2 to 4": ("#a0a", r"ab-8(-every\d)?"),
}  # fmt: skip
"""The lines of the plot by name: a colour, and a regular expression that matches the points of the line."""


LEFT, RIGHT = 60.0, 720.0
"""Horizontal positions of both ends of the axis of passes."""


def curve_svg(table: dict[str, Any]) -> str:
    """The plot of changes against `published` (the line at 0) over passes, with intervals, a line a solver."""
    kad = panel(table, "kad_change", "kernel distance to real songs, change (less is better)", 30.0, 230.0)
    pulse = panel(table, "pulse_change", "clarity of the pulse, change (more is better)", 300.0, 500.0)
    legend = [
        f'<text x="{RIGHT - 290}" y="{44 + 15 * number}" fill="{colour}">{name}</text>'
        for number, (name, (colour, _)) in enumerate(CURVES.items())
    ]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 550" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="780" height="550" fill="#fff"/>', *kad, *pulse, *legend, "</svg>"])


def panel(table: dict[str, Any], key: str, title: str, top: float, bottom: float) -> list[str]:
    """The SVG elements of one measure over passes; the vertical axis covers all intervals."""
    lines = [
        sorted(
            (row for name, row in table.items() if re.fullmatch(pattern, name)), key=lambda row: row["passes"]
        )
        for _, pattern in CURVES.values()
    ]
    ends = [row[f"{key}_{end}"] for line in lines for row in line for end in ("low", "high")] + [-1e-3, 1e-3]
    step = next(
        size
        for size in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
        if max(ends) - min(ends) < 8 * size
    )
    low, high = math.floor(min(ends) / step), math.ceil(max(ends) / step)

    def across(passes: float) -> float:
        return LEFT + (RIGHT - LEFT) * float(np.log2(max(passes, 5) / 5) / np.log2(66 / 5))

    def down(value: float) -> float:
        return bottom - (bottom - top) * (value / step - low) / (high - low)

    parts = [
        f'<path d="M{LEFT} {down(0):.1f}H{RIGHT}" stroke="#000" stroke-dasharray="4 3"/>',
        f'<text x="{RIGHT}" y="{down(0) - 4:.1f}" text-anchor="end">published: 62 passes</text>',
        f'<text x="{LEFT}" y="{top - 14}">{title}, 95 % over prompts</text>',
        f'<text x="{(LEFT + RIGHT) / 2}" y="{bottom + 36}" text-anchor="middle">passes a song</text>',
    ]
    for passes in (6, 8, 12, 16, 24, 32, 62):
        parts.append(f'<text x="{across(passes):.1f}" y="{bottom + 18}" text-anchor="middle">{passes}</text>')
    for tick in range(low, high + 1):
        label = f"{tick * step:+g}" if tick else "0"
        parts.append(f'<text x="{LEFT - 6}" y="{down(tick * step) + 4:.1f}" text-anchor="end">{label}</text>')
    for number, ((colour, _), rows) in enumerate(zip(CURVES.values(), lines, strict=True)):
        line = " ".join(f"{across(row['passes']):.1f},{down(row[key]):.1f}" for row in rows)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for row in rows:
            x, worst, best = across(row["passes"]), down(row[f"{key}_low"]), down(row[f"{key}_high"])
            parts += [
                f'<path d="M{x + 2 * (number - 2):.1f} {worst:.1f}V{best:.1f}" stroke="{colour}" opacity="0.4"/>',
                f'<circle cx="{x:.1f}" cy="{down(row[key]):.1f}" r="3.5" fill="{colour}"/>',
            ]
    return parts
