"""The numbers of a report as tables in Markdown or LaTeX: every axis, and what the verdict was reached by."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffdpo.evaluation.composites import ALL_TRAITS

TableStyle = Literal["markdown", "latex"]
TABLE_STYLES: tuple[TableStyle, ...] = ("markdown", "latex")
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
MAX_DECIMALS = 5
Cell = str | float | None
"""A text, a number, or nothing: NaN and None are a dash."""


@dataclass(frozen=True)
class ReportTable:
    """A table whose columns of numbers are set to the right."""

    columns: Mapping[str, bool]
    """Heads, and whether the column holds numbers."""
    rows: Sequence[Sequence[Cell]]


def report_tables(report: Mapping[str, Any], style: TableStyle = "markdown") -> str:
    """The tables of the content of a `report.json`; KeyError or TypeError for another file's."""
    tables = [axes_table(report), evidence_table(report)]
    texts = [format_markdown(table) if style == "markdown" else format_latex(table) for table in tables]
    reasons = report["verdict"]["reasons"]
    sentence = (
        "Verdict: passed." if report["verdict"]["passed"] else f"Verdict: not passed: {'; '.join(reasons)}."
    )
    sentence += (
        " Intervals are 95 % over prompts, of real songs over artists; their band ends at the 10th and 90th "
    )
    sentence += "percentile."
    if style == "latex":
        return "\n\n".join(["% needs \\usepackage{booktabs}", *texts, escape_latex(sentence)])
    return "\n\n".join([*texts, escape_markdown(sentence)])


def axes_table(report: Mapping[str, Any]) -> ReportTable:
    """A row an axis: means and change in its own unit, change in standard deviations of the base, the band."""
    columns = {"axis": False, "trait": False, "role": False, "base": True, "aligned": True, "change": True}
    columns |= {"low": True, "high": True, "change, SD": True, "wins, %": True}
    columns |= {"real 10 %": True, "real 90 %": True}
    rows = []
    for row in report["axes"]:
        effect, band = row["effect"], row.get("band") or {}
        spread = row["baseline_std"] or math.nan
        rows.append(
            [
                row["axis"], row.get("trait") or "", row["role"], row["baseline_mean"], row["aligned_mean"],
                effect["mean"], effect["low"], effect["high"], effect["mean"] / spread,
                100 * effect["win_rate"], band.get("low"), band.get("high"),
            ]
        )  # fmt: skip
    return ReportTable(columns, rows)


def evidence_table(report: Mapping[str, Any]) -> ReportTable:
    """A row a measure: composites of witnesses, the in-band share, best-of-N, diversity, and the other evidence."""
    columns = {"measure": False, "value": True, "low": True, "high": True}
    rows = [*_witness_rows(report.get("witnesses") or {}), *_verdict_rows(report["verdict"]["numbers"])]
    return ReportTable(
        columns, [*rows, ["verdict", "passed" if report["verdict"]["passed"] else "not passed", "", ""]]
    )


def _witness_rows(witnesses: Mapping[str, Any]) -> Iterator[list[Cell]]:
    composites = witnesses.get("composites", {})
    for name in sorted(composites, key=lambda name: name == ALL_TRAITS):
        effect = composites[name]
        yield [f"{name}, SD", effect["mean"], effect["low"], effect["high"]]
    real = witnesses.get("real") or {}
    for name in sorted(real, key=lambda name: name == ALL_TRAITS):
        at = real[name]
        yield [f"{name} of real songs, SD", at["value"], at["low"], at["high"]]
    if equivalent := witnesses.get("n_equivalent"):
        interval = equivalent["interval"]
        above = f"above {equivalent['largest']}"  # JSON has no infinity
        ends = (interval["value"], interval["low"], interval["high"])
        yield [
            "as good as the best of N",
            *(above if end is None or math.isinf(end) else end for end in ends),
        ]


def _verdict_rows(numbers: Mapping[str, Any]) -> Iterator[list[Cell]]:
    if band := numbers.get("band"):
        yield ["in-band share, base", band["base"], None, None]
        yield ["in-band share, aligned", band["aligned"], None, None]
        yield ["in-band share, change", band["change"], band["low"], band["high"]]
    for name, row in numbers.get("diversity", {}).items():
        yield [f"diversity, {name}, change in %", 100 * row["change"], None, None]
    for axis, row in numbers.get("spreads", {}).items():
        yield [f"spread of {axis} within prompts, ratio", row["ratio"], row["low"], row["high"]]
    if winners := numbers.get("held-out winners"):
        yield ["error of held-out winners, ratio", winners["ratio"], None, None]
    if drift := numbers.get("drift"):
        yield ["drift, nats a song", drift["kl"], drift.get("low"), drift.get("high")]
    if lyrics := numbers.get("lyrics"):
        yield ["phoneme error rate, change", lyrics["change"], lyrics["low"], lyrics["high"]]


def format_number(value: float) -> str:
    """Three significant digits in at most five decimals, never with an exponent."""
    if not math.isfinite(value):
        return "-"
    if abs(value) < 0.5 * 10**-MAX_DECIMALS:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(MAX_DECIMALS, decimals)}f}"


def format_markdown(table: ReportTable) -> str:
    """A table of GitHub's Markdown."""
    rules = ["---:" if is_number else "---" for is_number in table.columns.values()]
    rows = [[escape_markdown(_text(cell)) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(table.columns), rules, *rows])


def format_latex(table: ReportTable) -> str:
    """A `tabular` with the rules of the package booktabs."""
    alignment = "".join("r" if is_number else "l" for is_number in table.columns.values())
    rows = [[_latex_cell(cell) for cell in row] for row in table.rows]
    lines = [f"{' & '.join(row)} \\\\" for row in [[escape_latex(head) for head in table.columns], *rows]]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{alignment}}}",
            "\\toprule",
            lines[0],
            "\\midrule",
            *lines[1:],
            "\\bottomrule",
            "\\end{tabular}",
        ]
    )


def escape_latex(text: str) -> str:
    """A text whose signs have no meaning to LaTeX."""
    return "".join(LATEX_ESCAPES.get(sign, sign) for sign in text)


def escape_markdown(text: str) -> str:
    """A text that stays in its cell and is no markup."""
    for sign in "\\|*_<`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else format_number(cell)


def _latex_cell(cell: Cell) -> str:
    """Numbers are maths, for the sake of their minus."""
    if isinstance(cell, str):
        return escape_latex(cell)
    return "--" if cell is None or not math.isfinite(cell) else f"${format_number(cell)}$"
