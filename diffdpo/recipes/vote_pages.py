"""The reports of votes as pages: tables in Markdown and in HTML. Names and words of listeners are escaped."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAGE_ROWS = 200
"""Rows of a table on a page; the JSON files hold all."""
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.2rem .7rem;text-align:left;"
    "border-bottom:1px solid #8884}td+td{font-variant-numeric:tabular-nums}"
)


@dataclass(frozen=True)
class PageTable:
    """A table with a title and what is said of it."""

    title: str
    text: tuple[str, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def page_tables(
    ranking: Mapping[str, Any],
    raters: Sequence[Mapping[str, Any]],
    agreement: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
) -> list[PageTable]:
    """The tables of the page of a ranking."""
    return [
        _ranking_table(ranking),
        _rater_table(raters),
        _agreement_table(agreement),
        *(_group_table(group["key"], entry) for group in groups for entry in group["comparisons"]),
    ]


def _ranking_table(ranking: Mapping[str, Any]) -> PageTable:
    songs = sorted(ranking["songs"], key=lambda row: (row["set"], row["rank"], row["song"]))
    rows = tuple(
        (
            str(row["set"]),
            str(row["rank"]),
            row["song"],
            f"{row['utility']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
            str(row["votes"]),
            str(row["raters"]),
            "bad" if row["bad"] else "",
        )
        for row in songs
    )
    axis = ranking["axis"] or "preference overall"
    text = (
        f"Axis: {axis}. A difference of utilities of 1 is a preference of 73 % by a usual listener.",
        *ranking["notes"],
    )
    head = (
        "set",
        "rank",
        ranking["unit"],
        "utility",
        f"{ranking['level']:.0%} interval",
        "votes",
        "raters",
        "",
    )
    return PageTable("Ranking", text, head, rows)


def _rater_table(raters: Sequence[Mapping[str, Any]]) -> PageTable:
    rows = tuple(
        (
            row["rater"],
            str(row["votes"]),
            f"{row['reliability']:.2f} ({row['reliability_low']:.2f} to {row['reliability_high']:.2f})",
            f"{row['side_bias']:+.2f} ({row['side_bias_low']:+.2f} to {row['side_bias_high']:+.2f})",
            _share(row["control"]),
            _share(row["repeats"]),
        )
        for row in sorted(raters, key=lambda row: row["reliability"])
    )
    text = (
        "Reliability is 1 for the usual listener, 0 for one who votes at random, below 0 for one who means the "
        "reverse. Side bias is above 0 for one who prefers the song heard first.",
    )
    head = ("rater", "votes", "reliability", "side bias", "control pairs right", "repeats alike")
    return PageTable("Raters", text, head, rows)


def _agreement_table(agreement: Mapping[str, Any]) -> PageTable:
    side = agreement["side"]
    rows = (
        ("Krippendorff's alpha, nominal", _number(agreement["alpha_nominal"])),
        ("Krippendorff's alpha, ordinal", _number(agreement["alpha_ordinal"])),
        ("first song preferred", f"{_share(side['first'])}, z = {side['z']:.2f}, p = {side['p_value']:.3f}"),
        ("control pairs right", _share(agreement["control"])),
        ("repeats alike", _share(agreement["repeats"])),
    )
    return PageTable("Agreement", (), ("", ""), rows)


def _group_table(key: str, entry: Mapping[str, Any]) -> PageTable:
    group_a, group_b = entry["groups"]
    songs = sorted(entry["songs"], key=lambda row: row["p_value"])
    rows = tuple(
        (
            row["song"],
            f"{row[group_a]:+.2f}",
            f"{row[group_b]:+.2f}",
            f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})",
            f"{row['p_holm']:.3f}",
        )
        for row in songs
    )
    text = (
        f"Kendall's tau of the two rankings: {_number(entry['tau'])}. Songs whose utilities differ "
        f"(Holm, 5 %): {entry['differences']} of {len(rows)}.",
    )
    return PageTable(
        f"{key}: {group_a} and {group_b}", text, ("song", group_a, group_b, "difference", "p (Holm)"), rows
    )


def _share(share: Mapping[str, Any]) -> str:
    if not share["count"]:
        return "none"
    return f"{share['successes']} of {share['count']} ({share['low']:.0%} to {share['high']:.0%})"


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def markdown_page(tables: Sequence[PageTable], title: str = "Votes") -> str:
    """The tables in Markdown."""
    lines = [f"# {title}", ""]
    for table in tables:
        lines += [f"## {_cell(table.title)}", ""]
        for text in table.text:
            lines += [_cell(text), ""]
        rows = [table.head, ("---",) * len(table.head), *table.rows[:PAGE_ROWS]]
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
        lines += ["", *_remainder(table)]
    return "\n".join(lines).rstrip() + "\n"


def _remainder(table: PageTable) -> list[str]:
    count = len(table.rows) - PAGE_ROWS
    return [f"{count} more rows are in the JSON file.", ""] if count > 0 else []


def _cell(text: str) -> str:
    """Text that is only text in a table of Markdown."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def html_page(tables: Sequence[PageTable], title: str = "Votes") -> str:
    """The tables as a page that loads nothing."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
    ]
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        parts += [f"<p>{html.escape(text)}</p>" for text in (*table.text, *_remainder(table)) if text]
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
        parts.append(f"<table><tr>{cells}</tr>")
        parts += [
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in table.rows[:PAGE_ROWS]
        ]
        parts.append("</table>")
    return "\n".join(parts) + "</html>\n"
