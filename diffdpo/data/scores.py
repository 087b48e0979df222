"""The scores table: raw values, found again by the hash of the sound and the identity of the scorer."""

from collections.abc import Iterable
from pathlib import Path

from diffdpo.data import tables
from diffdpo.errors import DataError
from diffdpo.runs import MANIFEST, finished, read_json

TABLE = "scores.parquet"
KEY = ("sha256", "preprocessing", "scorer", "fingerprint", "axis", "window")
GATES = "gates"
WHOLE = "whole"
"""The window of a score that is about the whole song."""

Scores = dict[str, dict[str, float]]
"""For each sound (by hash) its value on every axis."""


def known_versions(folder: Path) -> dict[str, str]:
    """The scorers that a finished `score` used here, each with its newest fingerprint."""
    return dict(read_json(folder / MANIFEST)["scorers"]) if finished(folder) else {}


def read_scores(folder: Path) -> Scores:
    """All values by the newest version of every scorer that has worked here, gates included."""
    versions = known_versions(folder)
    if not versions:
        raise DataError(f"{folder}: no finished scores here; run `diffdpo score` first")
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
