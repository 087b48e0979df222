"""The scores table: raw values, found again by the hash of the sound and the identity of the scorer."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from diffdpo.data import tables

TABLE = "scores.parquet"
KEY = ("sha256", "preprocessing", "scorer", "fingerprint", "axis", "window")
GATES = "gates"
WHOLE = "whole"
"""The window of a score that is about the whole song."""

Scores = dict[str, dict[str, float]]
"""For each sound (by hash) its value on every axis."""


def read_scores(folder: Path, versions: Mapping[str, str]) -> Scores:
    """All values of the current versions of some scorers (name to fingerprint), gates included."""
    found: Scores = {}
    for row in tables.read(folder / TABLE, KEY):
        if versions.get(row["scorer"]) == row["fingerprint"] and row["window"] == WHOLE:
            found.setdefault(row["sha256"], {})[row["axis"]] = row["value"]
    return found


def score_rows(
    sha256: str, preprocessing: str, scorer: str, fingerprint: str, values: Iterable[tuple[str, float]]
) -> list[tables.Row]:
    return [
        {
            "sha256": sha256,
            "preprocessing": preprocessing,
            "scorer": scorer,
            "fingerprint": fingerprint,
            "axis": axis,
            "window": WHOLE,
            "value": float(value),
        }
        for axis, value in values
    ]
