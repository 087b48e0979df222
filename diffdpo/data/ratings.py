"""Ratings of single songs: what people said of them, or how far their scores lie above their prompt's others.

Two kinds of numbers share one table, told apart by `source`. Both mean: positive is better than usual.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from diffdpo.data import tables
from diffdpo.data.schema import TableSpec
from diffdpo.errors import DataError

MINED = "mined"
"""The source of ratings that follow from scores: advantages over the other songs of the prompt."""
PEOPLE = "people"
"""The source of ratings that people gave; `people/ann` when each of them keeps rows of her own."""


@dataclass(frozen=True, kw_only=True)
class RatingRow:
    """One song and how good it is."""

    prompt_id: str
    """The prompt of the song."""
    group: str = ""
    """The prompt's: prompts of one group never fall on both sides of a split."""
    samples: str
    """The folder of the song, relative to that of the table."""
    sample_id: str
    """The song in its folder."""
    rating: float
    """From scores: the advantage in standard deviations. From people: positive is liked, negative is not."""
    source: str = MINED
    """Whose rating it is: `mined`, `people`, or one person of several (`people/ann`)."""
    weight: float = 1.0
    """How much the song counts in training."""
    raters: int = 0
    """How many people's opinions the rating is the mean of."""


RATINGS = TableSpec("ratings", RatingRow, key=("samples", "sample_id", "source"))


def is_from(source: str, selection: str) -> bool:
    """Whether a row's source is the selected one, or one person of it."""
    return source == selection or source.startswith(f"{selection}/")


def read_ratings(folder: Path, source: str = "") -> list[RatingRow]:
    """The rows of one source, ordered by song. DataError when there are none, or several sources and none is named.

    Mined and people's numbers are on different scales, so they are never mixed.
    """
    path = folder / RATINGS.folder
    rows = tables.read_rows(folder, RATINGS)
    if not rows:
        raise DataError(f"{path}: holds no ratings; run `diffdpo mine` or `diffdpo import-ratings` first")
    sources = sorted({row.source.split("/")[0] for row in rows})
    if not source and len(sources) > 1:
        raise DataError(f"{path}: holds ratings of {' and '.join(sources)}; name one with data.rating_source")
    selection = [row for row in rows if is_from(row.source, source or sources[0])]
    if not selection:
        raise DataError(f"{path}: holds no ratings of {source!r}, only of {', '.join(sources)}")
    for row in selection:
        if not math.isfinite(row.rating):
            raise DataError(f"{path}: the rating of {row.sample_id!r} is not a number; make the table again")
    return sorted(selection, key=lambda row: (row.samples, row.sample_id, row.source))


def per_song(rows: Iterable[RatingRow]) -> list[RatingRow]:
    """One row a song: the mean of its ratings and of their weights. `rows` are ordered by song."""
    songs = []
    for _, group in groupby(rows, key=lambda row: (row.samples, row.sample_id)):
        ratings = list(group)
        mean, weight = (
            math.fsum(values) / len(ratings)
            for values in ([row.rating for row in ratings], [row.weight for row in ratings])
        )
        songs.append(replace(ratings[0], rating=mean, weight=weight))
    return songs
