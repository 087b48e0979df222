"""Draws the plot of tools/bench_search.py: gain over cost, a line a method, as SVG."""

from collections.abc import Sequence

import numpy as np

from tools.bench.frontier_file import Point

COLORS = ("#06c", "#c60", "#090", "#a0a", "#c03", "#088", "#777")
LEFT, RIGHT, TOP, BOTTOM = 60.0, 560.0, 40.0, 320.0
COSTS = (1, 2, 4, 8, 16, 32)


def search_svg(points: Sequence[Point], composite: str = "W.all") -> str:
    """The gain of a composite over the cost in songs, with intervals, a line for each method. Those with another
    reward, other songs or another seed are left out: their names have a colon, or end in the seed."""
    rows = [point for point in points if "cost" in point and ": " not in point["name"]]
    rows = [point for point in rows if ", seed " not in point["name"]]
    lines: dict[str, list[Point]] = {}
    for row in rows:
        lines.setdefault(row["name"].rpartition(" at ")[0], []).append(row)
    highest = max(row["composites"][composite]["high"] for row in rows)
    lowest = min(0.0, *(row["composites"][composite]["low"] for row in rows))
    low, high = np.floor(lowest / 0.2) * 0.2, np.ceil(highest / 0.2) * 0.2

    def across(cost: float) -> float:
        return LEFT + (RIGHT - LEFT) * float(np.log2(max(cost, 1)) / np.log2(COSTS[-1]))

    def down(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 370" font-family="sans-serif" font-size="12">',
        '<rect width="780" height="370" fill="#fff"/>',
        f'<text x="{LEFT}" y="{TOP - 16}">gain in {composite}, standard deviations, 95 % over prompts</text>',
        f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 38}" text-anchor="middle">cost of a prompt, songs</text>',
    ]
    for cost in COSTS:
        parts.append(f'<text x="{across(cost):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{cost}</text>')
    for tick in np.arange(low, high + 0.1, 0.2):
        y = down(float(tick))
        parts.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
    for number, (name, series) in enumerate(lines.items()):
        color, shift = COLORS[number % len(COLORS)], 3 * (number - len(lines) / 2)
        series = sorted(series, key=lambda row: row["cost"])
        places = [(across(row["cost"]) + shift, row["composites"][composite]) for row in series]
        path = " ".join(f"{x:.1f},{down(value['mean']):.1f}" for x, value in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for x, value in places:
            worst, best = down(value["low"]), down(value["high"])
            parts += [
                f'<path d="M{x:.1f} {worst:.1f}V{best:.1f}" stroke="{color}" opacity="0.4"/>',
                f'<circle cx="{x:.1f}" cy="{down(value["mean"]):.1f}" r="3.5" fill="{color}"/>',
            ]
        label = f"{name}, {series[0]['prompts']} prompts"
        parts.append(f'<text x="{RIGHT + 24}" y="{TOP + 16 * number}" fill="{color}">{label}</text>')
    return "\n".join([*parts, "</svg>"])
