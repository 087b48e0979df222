"""Ratings of single songs: what people said of them, or how far their scores lie above their prompt's others.

Two kinds of numbers share one table, told apart by `source`. Both mean: positive is better than usual.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from diffdpo.data import tables

TABLE = "ratings.parquet"
KEY = ("samples", "sample_id", "source")
MINED = "mined"
"""The source of ratings that follow from scores: advantages over the other songs of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One song and how good it is."""

    prompt_id: str
    group: str
    sample_id: str
    rating: float
    """From scores: the advantage in standard deviations. From people: positive is liked, negative is not."""
    source: str = MINED


def rating_row(rating: Rating, samples: Path, table: Path) -> tables.Row:
    """A rating as a row of a table, which names the samples' folder relative to itself."""
    return {
        "prompt_id": rating.prompt_id,
        "group": rating.group,
        "samples": os.path.relpath(samples, table.parent),
        "sample_id": rating.sample_id,
        "rating": rating.rating,
        "source": rating.source,
    }
