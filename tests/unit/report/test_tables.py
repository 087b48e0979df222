"""Tables of a report: every number comes back as it was, and no name breaks a table."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffdpo.cli import app
from diffdpo.report.tables import ReportTable, format_latex, format_markdown, format_number, report_tables


def effect(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.1234567, "high": mean + 0.0456789, "win_rate": 0.625}


def axis(name: str, mean: float, **values: Any) -> dict[str, Any]:
    row = {
        "axis": name,
        "trait": "harmony",
        "role": "judge",
        "baseline_mean": -1.5,
        "aligned_mean": mean - 1.5,
    }
    return row | {"baseline_std": 0.5, "effect": effect(mean), "band": None} | values


REPORT: dict[str, Any] = {
    "axes": [
        axis("note.key_100%", 0.031415926, band={"low": -2.25, "high": 1234.5}),
        axis("a|b & $c_{d}^2$ #~\\x", -12.5, trait=None, baseline_std=0.0),
    ],
    "witnesses": {
        "composites": {"W.all": effect(0.5), "W.harmony": effect(-0.00001)},
        "band": {"base_share": 0.8},
        "n_equivalent": {"interval": {"value": 4.5, "low": 2.25, "high": None}, "largest": 10},
    },
    "verdict": {
        "passed": False,
        "reasons": ["the judge note.key_100% fell"],
        "numbers": {
            "band": {"base": 0.8, "aligned": 0.75, "change": -0.05, "low": -0.08, "high": -0.02},
            "diversity": {"Vendi": {"base": 40.0, "aligned": 36.0, "change": -0.1}},
            "spreads": {"note.key": {"ratio": 0.875, "low": 0.75, "high": 1.125}},
            "held-out winners": {"ratio": 1.05, "limit": 1.1},
            "drift": {"kl": 12.5, "limit": None},
            "lyrics": {"change": 0.01, "low": -0.01, "high": 0.03},
            "absent": [],
        },
    },
}


def expected_axes() -> list[list[float]]:
    """Numbers of the rows of axes; NaN for a dash."""
    rows = []
    for row in REPORT["axes"]:
        e, band = row["effect"], row["band"] or {"low": math.nan, "high": math.nan}
        spread = row["baseline_std"] or math.nan
        means = [row["baseline_mean"], row["aligned_mean"]]
        changes = [e["mean"], e["low"], e["high"], e["mean"] / spread]
        rows.append([*means, *changes, 100 * e["win_rate"], band["low"], band["high"]])
    return rows


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of all tables, heads included, as a reader of Markdown takes them apart."""
    rows = []
    for line in text.split("\n"):
        if line.startswith("|") and not line.startswith("| ---"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            rows.append([re.sub(r"\\([\\|*_<`])", r"\1", cell.strip()) for cell in cells])
    return rows


def latex_rows(text: str) -> list[list[str]]:
    """Cells of all tables, as LaTeX prints them: comments, ends of rows and cells, maths, and signs."""
    rows = []
    for line in text.split("\n"):
        if not line.endswith(r" \\"):
            continue
        body = line.removesuffix(r" \\")
        assert not re.search(r"(?<!\\)%", body), "the rest of the line would be a comment"
        cells = re.split(r"(?<!\\)&", body)
        rows.append([latex_text(cell.strip()) for cell in cells])
    return rows


def latex_text(cell: str) -> str:
    if cell.startswith("$") and cell.endswith("$"):
        return cell[1:-1]
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textbar": "|"}
    assert not re.search(r"(?<!\\)[_#$^~|]", cell), cell
    return re.sub(
        r"\\(?:(text[a-z]+)\{\}|([&%$#_{}]))", lambda m: names[m[1]] if m[1] else m[2], cell
    ).replace("--", "-")


@pytest.mark.parametrize(("style", "rows_of"), [("markdown", markdown_rows), ("latex", latex_rows)])
def test_the_numbers_of_every_row_come_back(style: Any, rows_of: Any) -> None:
    rows = rows_of(report_tables(REPORT, style))
    assert {len(row) for row in rows} == {12, 4}
    axes, measures = ([row for row in rows if len(row) == width] for width in (12, 4))
    assert axes[0][-2:] == ["real 10 %", "real 90 %"]
    assert [row[0] for row in axes[1:]] == [row["axis"] for row in REPORT["axes"]]
    for row, expected in zip(axes[1:], expected_axes(), strict=True):
        numbers = [math.nan if cell == "-" else float(cell) for cell in row[3:]]
        assert numbers == pytest.approx(expected, rel=0.006, abs=1e-5, nan_ok=True)
    by_name = {row[0]: row[1:] for row in measures[1:]}
    composites = REPORT["witnesses"]["composites"]
    for name, e in composites.items():
        numbers = [float(cell) for cell in by_name[f"{name}, SD"]]
        assert numbers == pytest.approx([e["mean"], e["low"], e["high"]], rel=0.006, abs=1e-5)
    assert list(by_name)[:2] == ["W.harmony, SD", "W.all, SD"]
    assert by_name["as good as the best of N"] == ["4.50", "2.25", "above 10"]
    shares = [by_name[f"in-band share, {name}"] for name in ("base", "aligned", "change")]
    assert shares == [["0.800", "-", "-"], ["0.750", "-", "-"], ["-0.0500", "-0.0800", "-0.0200"]]
    assert by_name["diversity, Vendi, change in %"][0] == "-10.0"
    assert by_name["spread of note.key within prompts, ratio"] == ["0.875", "0.750", "1.12"]
    assert by_name["error of held-out winners, ratio"][0] == "1.05"
    assert by_name["drift, nats a song"][0] == "12.5"
    assert by_name["phoneme error rate, change"] == ["0.0100", "-0.0100", "0.0300"]
    assert by_name["verdict"][0] == "not passed"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-3.5e-18, "0"),
        (0.00123456, "0.00123"),
        (0.0000378, "0.00004"),
        (-0.5, "-0.500"),
        (12.345, "12.3"),
        (123456.7, "123457"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_a_number_has_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert format_number(value) == text


def test_a_table_is_set_to_the_right_where_it_holds_numbers() -> None:
    table = ReportTable({"x_1": False, "y": True}, [["a_b", 1.0], ["", None]])
    assert format_markdown(table) == "| x_1 | y |\n| --- | ---: |\n| a\\_b | 1.00 |\n|  | - |"
    assert format_latex(table).split("\n") == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"x\_1 & y \\",
        r"\midrule",
        r"a\_b & $1.00$ \\",
        r" & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_command_reads_a_round_a_folder_or_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "report"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    runner = CliRunner()
    outputs = [
        runner.invoke(app, ["report", str(source), "--table", "latex"])
        for source in (tmp_path / "run", folder, folder / "report.json")
    ]
    assert {result.exit_code for result in outputs} == {0}
    assert {result.stdout for result in outputs} == {report_tables(REPORT, "latex") + "\n"}
    assert runner.invoke(app, ["report", str(folder)]).stdout == report_tables(REPORT) + "\n"
    for words, says in (
        ([str(folder), "--table", "html"], "markdown or latex, got 'html'"),
        ([str(tmp_path)], "no such file"),
    ):
        result = runner.invoke(app, ["report", *words])
        assert result.exit_code == 2
        assert says in result.stderr


@pytest.mark.parametrize("content", [[], {}, {"axes": []}, REPORT | {"verdict": "Better on all."}])
def test_a_report_of_another_version_is_one_line(tmp_path: Path, content: Any) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "no report of this version of `diffdpo evaluate`; run it again" in result.stderr
