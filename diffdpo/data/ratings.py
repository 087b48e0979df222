"""Ratings of single songs: people's opinions, or advantages of scores over the other songs of the prompt.

The two kinds of numbers share one table and differ in `source`. A positive rating is better than usual.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from diffdpo.data import tables
from diffdpo.data.schema import TableSpec
from diffdpo.errors import DataError

MINED_SOURCE = "mined"
"""The source of ratings from scores: advantages over the other songs of the prompt."""
PEOPLE_SOURCE = "people"
"""The source of people's ratings; `people/ann` where each rater has separate rows."""


@dataclass(frozen=True, kw_only=True)
class RatingRow:
    """One rating of one song."""

    prompt_id: str
    """The prompt of the song."""
    group: str = ""
    """The group of the prompt: prompts of one group never fall on both sides of a split."""
    samples: str
    """The folder of the song, relative to the table's folder."""
    sample_id: str
    """Id of the song in its folder."""
    rating: float
    """From scores: the advantage in standard deviations. From people: positive is liked, negative is not."""
    source: str = MINED_SOURCE
    """Who rated the song: `mined`, `people`, or one person of several (`people/ann`)."""
    weight: float = 1.0
    """Weight of the song in training."""
    raters: int = 0
    """Number of opinions that the rating is the mean of; 0 for a rating from scores."""


RATINGS = TableSpec("ratings", RatingRow, key=("samples", "sample_id", "source"))


def is_from(source: str, selection: str) -> bool:
    """Whether a row's source is the selected source, or one person of it (`people/ann` of `people`)."""
    return source == selection or source.startswith(f"{selection}/")


def read_ratings(folder: Path, source: str = "") -> list[RatingRow]:
    """The ratings of one source, ordered by song; `source` may be empty where there is only one.

    Mined ratings and people's are on different scales and never mixed. DataError without ratings, or for several
    sources without a choice.
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
    """One row a song, with the means of its ratings and of their weights. `rows` are ordered by song."""
    songs = []
    for _, group in groupby(rows, key=lambda row: (row.samples, row.sample_id)):
        ratings = list(group)
        mean, weight = (
            math.fsum(values) / len(ratings)
            for values in ([row.rating for row in ratings], [row.weight for row in ratings])
        )
        songs.append(replace(ratings[0], rating=mean, weight=weight))
    return songs
