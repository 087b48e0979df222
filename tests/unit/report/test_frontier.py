"""The frontier: its file, and where its points lie."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from diffdpo.errors import DataError
from diffdpo.evaluation.witness_report import BestOfN, WitnessReport
from diffdpo.report.frontier import (
    BEST_OF_N,
    FrontierPoint,
    best_of_n_points,
    draw_frontier,
    read_frontier,
)
from diffdpo.report.page import Report, render
from diffdpo.report.plots import MINUS
from diffdpo.statistics import Effect, Interval


def row(name: str, method: str, mean: float, **values: Any) -> dict[str, Any]:
    effect = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    return {"name": name, "method": method, "kl": None, "n": None, "composites": {"W.all": effect}} | values


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "frontier.json"
    path.write_text(json.dumps({"points": rows}), encoding="utf-8")
    return path


def test_a_file_is_read_and_best_of_n_has_its_divergence(tmp_path: Path) -> None:
    change = {"mean": -0.05, "low": -0.08, "high": -0.02}
    share = {"share": 0.75, "base": 0.8, "change": change}
    path = write(
        tmp_path,
        row("four", "best-of-n", 0.4, n=4),
        row("one run", "dpo", 0.5, kl=9.0, in_band=share, verdict={"passed": False, "reasons": ["x"]}),
        row(
            "aligned, best of 4", "dpo + best of 4", 0.7, n=4, in_band={"mean": 0.5, "low": 0.4, "high": 0.6}
        ),
    )
    points = read_frontier(path)
    assert [p.kl for p in points] == [pytest.approx(math.log(4) - 3 / 4), 9.0, None]
    assert [p.method for p in points] == [BEST_OF_N, "dpo", "dpo + best of 4"]
    assert [p.in_band_text for p in points] == [
        "\N{EN DASH}",
        f"0.75, {MINUS}0.050 ({MINUS}0.080 to {MINUS}0.020)",
        "0.50",
    ]
    assert [p.passed for p in points] == [None, False, None]
    gain = points[0].gain
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.4, 0.3, 0.5))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"points": [1]}', '{"points": [{"name": "x", "method": "y"}]}',
     '{"points": [{"name": "x", "method": "y", "kl": "far", "composites": {}}]}'],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "frontier.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"frontier\.json: no file of a frontier \(.*bench_frontier"):
        read_frontier(path)
    with pytest.raises(DataError, match="no such file"):
        read_frontier(tmp_path / "nothing.json")


def point(gain: float, kl: float | None, method: str = "dpo") -> FrontierPoint:
    return FrontierPoint(
        name=f"p{gain}", method=method, kl=kl, composites={"W.all": Interval(gain, gain - 0.1, gain + 0.2)}
    )


def test_points_lie_by_the_root_of_their_divergence_and_their_gain() -> None:
    picture = draw_frontier([point(1.0, 16.0), point(0.5, 4.0), point(0.0, 0.0, BEST_OF_N)])
    assert picture is not None
    origin, near, far = picture.dots
    assert origin.x == 0
    assert far.x == pytest.approx(2 * near.x, abs=0.02)
    assert near.marks[0] == pytest.approx((origin.marks[0] + far.marks[0]) / 2, abs=0.02)
    assert picture.zero == origin.marks[0]
    value, low, high = near.marks
    assert (value - high) == pytest.approx(2 * (low - value), abs=0.05)  # upwards is smaller
    assert all(0 <= mark <= 100 for dot in picture.dots for mark in (dot.x, *dot.marks))
    assert picture.methods == (BEST_OF_N, "dpo")
    places = [at for at, _ in picture.x_ticks]
    assert all(right - left >= 10 for left, right in pairwise(places))


def test_a_model_without_a_divergence_is_a_line_and_with_one_a_point() -> None:
    points, gain = [point(0.0, 0.0, BEST_OF_N), point(0.4, 1.0, BEST_OF_N)], Interval(0.2, 0.1, 0.3)
    line, dot = draw_frontier(points, gain), draw_frontier(points, gain, 1.0)
    assert line is not None
    assert dot is not None
    assert line.model_x is None
    assert dot.model_x == dot.dots[1].x
    assert line.model_marks is not None
    assert line.model_marks[0] == pytest.approx((line.dots[0].marks[0] + line.dots[1].marks[0]) / 2, abs=0.02)
    assert "this model: +0.20 (+0.10 to +0.30) SD" in line.aria_label
    assert re.fullmatch(r"M[\d.]+,[\d.]+L[\d.]+,[\d.]+", line.curve)


def test_without_anything_to_compare_there_is_no_picture() -> None:
    assert draw_frontier([]) is None
    assert draw_frontier([], Interval(0.2, 0.1, 0.3), 1.0) is None
    nothing = FrontierPoint(name="x", method="dpo", kl=1.0, composites={})
    assert draw_frontier([nothing]) is None
    unmeasured = draw_frontier([point(0.5, None)])
    assert unmeasured is not None
    assert (unmeasured.dots, len(unmeasured.points)) == ((), 1)


def test_the_bases_own_curve_is_that_of_its_stored_candidates() -> None:
    gains = tuple(BestOfN(n, math.log(n) - (n - 1) / n, Interval(0.1 * n, 0.0, 1.0)) for n in (1, 2))
    effect = Effect(0.2, 0.1, 0.3, 0.5, 0.2, 48, 24)
    witnesses = WitnessReport({"W.all": effect}, "", None, None, gains)
    first, second = best_of_n_points(witnesses)
    assert (first.kl, second.kl) == (0.0, pytest.approx(0.1931, abs=1e-4))
    assert second.gain.value == 0.2
    assert {first.method, second.method} == {BEST_OF_N}


def test_the_page_has_a_row_for_each_point_and_the_verdicts_that_there_are() -> None:
    points = [replace(point(0.5, 4.0), passed=False, name="<far>"), point(0.1, None)]
    page = render(Report(title="t", facts={}, effects=[], frontier=points))
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>.*?<td class="[^"]*">([^<]*)</td></tr>', page)
    assert rows == [("&lt;far&gt;", "not passed"), ("p0.1", "\N{EN DASH}")]
    assert len(re.findall(r'<circle cx="[\d.]+%', page)) == 1
    assert "not passed" not in render(Report(title="t", facts={}, effects=[], frontier=points[1:]))
