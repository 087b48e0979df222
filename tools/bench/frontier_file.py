"""The file of the frontier, which several benches read and add to, and its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from diffdpo.runs import read_json, write_json
from tools.bench.frontier import as_value
from tools.bench.measure import markdown_table

Point = Mapping[str, Any]
"""name, method, n (songs chosen from, or None), kl (nats a song, or None), composites, in_band, distance, spread,
verdict (passed and reasons, or None); of models `equivalent`, the N of best-of-N that gains as much, in words."""
COMPOSITES = ("W.harmony", "W.rhythm", "W.form", "W.all")


def read_points(path: Path) -> list[Point]:
    """The points of a file, in the order in which they were added; none if there is no file."""
    return read_json(path)["points"] if path.is_file() else []


def add_point(path: Path, point: Point) -> None:
    """Add a point to a file, in the place of one with its name; several processes may add to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        points = read_points(path)
        names = [row["name"] for row in points]
        if point["name"] in names:
            points[names.index(point["name"])] = point
        else:
            points.append(point)
        write_json(path, {"points": points})


def frontier_table(points: Sequence[Point]) -> str:
    """The points in Markdown, a row a point."""
    head = ["", "KL", *COMPOSITES, "as best of", "in-band share, change", "Fréchet distance", "verdict"]
    return markdown_table(head, [_cells(point) for point in points])


def _cells(point: Point) -> list[str]:
    composites, in_band = point["composites"], point["in_band"]
    return [
        point["name"],
        "" if point["kl"] is None else f"{point['kl']:.3g}",
        *(as_value(composites[name]) if name in composites else "" for name in COMPOSITES),
        point.get("equivalent") or "",
        f"{in_band['share']:.2f}, {as_value(in_band['change'], 3)}",
        f"{point['distance']['frechet']:.2f}",
        verdict_text(point["verdict"]),
    ]


def verdict_text(verdict: Mapping[str, Any] | None) -> str:
    """A verdict in a cell of a table; empty for songs without one."""
    if not verdict:
        return ""
    return "passed" if verdict["passed"] else f"not passed: {'; '.join(verdict['reasons'])}"
