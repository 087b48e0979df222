"""Ratings of single songs: what people said of them, or how far their scores lie above their prompt's others.

Two kinds of numbers share one table, told apart by `source`. Both mean: positive is better than usual.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from diffdpo.data import tables
from diffdpo.errors import DataError

TABLE = "ratings.parquet"
KEY = ("samples", "sample_id", "source")
MINED = "mined"
"""The source of ratings that follow from scores: advantages over the other songs of the prompt."""
PEOPLE = "people"
"""The source of ratings that people gave; `people/ann` when each of them keeps rows of her own."""


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One song and how good it is."""

    prompt_id: str
    group: str
    sample_id: str
    rating: float
    """From scores: the advantage in standard deviations. From people: positive is liked, negative is not."""
    source: str = MINED
    weight: float = 1.0
    """How much the song counts in training."""
    raters: int = 0
    """How many people's opinions it is the mean of."""


def rating_row(rating: Rating, samples: Path, table: Path) -> tables.Row:
    """A rating as a row of a table, which names the samples' folder relative to itself."""
    return {
        "prompt_id": rating.prompt_id,
        "group": rating.group,
        "samples": os.path.relpath(samples, table.parent),
        "sample_id": rating.sample_id,
        "rating": rating.rating,
        "source": rating.source,
        "weight": rating.weight,
        "raters": rating.raters,
    }


def of_source(source: str, wanted: str) -> bool:
    """Whether a row's source is the wanted one, or one person of it."""
    return source == wanted or source.startswith(f"{wanted}/")


def read_ratings(folder: Path, source: str = "") -> list[tables.Row]:
    """The rows of one source, ordered by song. DataError when there are none, or several sources and none is named.

    Mined and people's numbers are on different scales, so they are never mixed.
    """
    path = folder / TABLE
    rows = tables.read(path, KEY)
    if not rows:
        raise DataError(f"{path}: holds no ratings; run `diffdpo mine` or `diffdpo import-ratings` first")
    known = sorted({row["source"].split("/")[0] for row in rows})
    if not source and len(known) > 1:
        raise DataError(f"{path}: holds ratings of {' and '.join(known)}; name one with data.rating_source")
    chosen = [row for row in rows if of_source(row["source"], source or known[0])]
    if not chosen:
        raise DataError(f"{path}: holds no ratings of {source!r}, only of {', '.join(known)}")
    for row in chosen:
        if not math.isfinite(row["rating"]):
            raise DataError(
                f"{path}: the rating of {row['sample_id']!r} is not a number; make the table again"
            )
    # Tables written before ratings had weights lack the column.
    return sorted(({"weight": 1.0, **row} for row in chosen), key=lambda row: [row[name] for name in KEY])


def per_song(rows: Iterable[tables.Row]) -> list[tables.Row]:
    """One row a song: the mean of its ratings and of their weights. `rows` are ordered by song."""
    songs = []
    for _, found in groupby(rows, key=lambda row: (row["samples"], row["sample_id"])):
        same = list(found)
        means = {name: math.fsum(row[name] for row in same) / len(same) for name in ("rating", "weight")}
        songs.append({**same[0], **means})
    return songs


def standardised(values: Sequence[float]) -> list[float]:
    """Standard deviations from the mean; zeros for values that are all the same."""
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    tied = std <= 1e-9 * max(1.0, abs(mean))
    return [0.0 if tied else (value - mean) / std for value in values]
