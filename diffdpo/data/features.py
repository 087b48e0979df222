"""The features table: vectors of frozen networks, by the hash of the sound and the identity of the extractor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffdpo.data import tables
from diffdpo.data.schema import TableSpec


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """The vectors of one sound, or of an excerpt, by one extractor."""

    sha256: str
    """Hash of the sound (canonical PCM), as in the samples table."""
    begin_s: float = 0.0
    """Start of the excerpt, in seconds."""
    end_s: float = 0.0
    """Its end; 0 for the whole sound."""
    preprocessing: str = ""
    """Version of what was done to the sound before it was embedded."""
    extractor: str
    """Name of the extractor."""
    fingerprint: str
    """Identity of the extractor: its version, its arguments and its weights."""
    crops: str = "whole"
    """The windows: `whole`, or their length in seconds and their largest number."""
    windows: int = 1
    """How many vectors there are."""
    values: tuple[float, ...]
    """All vectors, end to end; none for a silent sound."""


FEATURE_TABLE = TableSpec(
    "features",
    FeatureRow,
    key=("sha256", "begin_s", "end_s", "preprocessing", "extractor", "fingerprint", "crops"),
)


class FeatureKey(NamedTuple):
    """Identity of the vectors of one excerpt by one extractor."""

    sha256: str
    begin_s: float
    end_s: float
    preprocessing: str
    fingerprint: str
    crops: str


FeatureCache = Mapping[FeatureKey, Float[np.ndarray, "crop feature"]]


def read_feature_cache(folder: Path, fingerprints: Sequence[str]) -> dict[FeatureKey, np.ndarray]:
    """The vectors of a folder by these extractors; no windows for a silent sound."""
    rows = tables.read_rows(folder, FEATURE_TABLE)
    return {
        FeatureKey(
            row.sha256, row.begin_s, row.end_s, row.preprocessing, row.fingerprint, row.crops
        ): np.reshape(row.values, (row.windows, len(row.values) // max(1, row.windows)))
        for row in rows
        if row.fingerprint in fingerprints
    }
