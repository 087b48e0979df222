"""A table of real songs: what the scorers give windows of them after a codec, a measure for generated songs.

Songs are in four groups that share no artist, but for those held out of training, which are all in the judge's:
what is optimised looks at `targets`, what judges at `judge`, what learns at `critic` and `second_critic`. The table
of the package holds numbers only; `tools/judges/real_songs.py` makes it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from diffdpo.errors import DataError, reason

REAL_SONGS_PATH = Path(str(resources.files("diffdpo").joinpath("assets/judges/real_songs.parquet")))
SONG_GROUPS = ("targets", "judge", "critic", "second_critic")
HELD_OUT_SPLITS = ("valid", "test")
REAL_SONG_COLUMNS = ("song", "title", "package", "artist", "style", "tags", "split", "group", "in_training")
"""Of a window's song. `style` are the words of people, `tags` those of a tagger, both with commas in between."""
REAL_WINDOW_COLUMNS = (*REAL_SONG_COLUMNS, "start_s")
GROUP_SALT = b"diffdpo-real-songs-2889"
"""Part of the hash that divides artists; chosen for groups of even size, without a look at any value."""


@dataclass(frozen=True, kw_only=True)
class RealSongs:
    """Windows of real songs by axes. Columns have one entry a window."""

    axes: tuple[str, ...]
    values: Float[np.ndarray, "window axis"]
    song: tuple[str, ...]
    title: tuple[str, ...]
    package: tuple[str, ...]
    artist: tuple[str, ...]
    style: tuple[str, ...]
    tags: tuple[str, ...]
    split: tuple[str, ...]
    group: tuple[str, ...]
    in_training: tuple[bool, ...]
    """Whether the tiny model or its codec was trained on the song."""
    start_s: tuple[float, ...]
    versions: dict[str, str]
    """The fingerprint of every scorer whose values these are."""

    def __len__(self) -> int:
        return len(self.song)

    def column(self, axis: str) -> Float[np.ndarray, " window"]:
        """The values on an axis. DataError for one that the table lacks."""
        if axis not in self.axes:
            raise DataError(f"the table of real songs lacks the axis {axis!r}; it has {', '.join(self.axes)}")
        return self.values[:, self.axes.index(axis)]

    def matrix(self, axes: Sequence[str]) -> Float[np.ndarray, "window axis"]:
        """The values on some axes, in this order."""
        return np.stack([self.column(axis) for axis in axes], axis=1)

    def select(self, mask: Bool[np.ndarray, " window"]) -> "RealSongs":
        """The windows where the mask is true."""
        places = np.flatnonzero(mask)
        columns = {
            name: tuple(getattr(self, name)[place] for place in places) for name in REAL_WINDOW_COLUMNS
        }
        return RealSongs(axes=self.axes, values=self.values[places], versions=self.versions, **columns)

    def of_group(self, *groups: str) -> "RealSongs":
        """The windows of songs in these groups."""
        for group in groups:
            if group not in SONG_GROUPS:
                raise ValueError(f"{group!r} is no group of real songs: {', '.join(SONG_GROUPS)}")
        return self.select(np.array([group in groups for group in self.group], bool))


@cache
def read_table(path: Path = REAL_SONGS_PATH) -> RealSongs:
    """The table of a file, by default the one of the package. DataError if it is missing or damaged."""
    try:
        table = pq.read_table(path)
        columns = {name: tuple(table.column(name).to_pylist()) for name in REAL_WINDOW_COLUMNS}
        axes = tuple(name for name in table.column_names if name not in REAL_WINDOW_COLUMNS)
        values = np.stack([table.column(axis).to_numpy() for axis in axes], axis=1).astype(np.float64)
        versions = json.loads(table.schema.metadata[b"versions"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no table of real songs ({reason(error)}); make or copy it again") from None
    return RealSongs(axes=axes, values=values, versions=versions, **columns)


def write_table(path: Path, songs: RealSongs) -> None:
    """Write a table as Parquet, values in single precision."""
    columns = {name: pa.array(getattr(songs, name)) for name in REAL_WINDOW_COLUMNS}
    columns |= {axis: pa.array(songs.column(axis).astype(np.float32)) for axis in songs.axes}
    table = pa.table(columns).replace_schema_metadata({"versions": json.dumps(songs.versions)})
    pq.write_table(table, path, compression="zstd")


def song_group(package: str, artist: str, split: str = "train") -> str:
    """The group of a song: the judge's if it was held out of training, else by a hash of package and artist."""
    if split in HELD_OUT_SPLITS:
        return "judge"
    digest = hashlib.sha256(GROUP_SALT + f"|{package}|{artist}".encode()).digest()
    return SONG_GROUPS[digest[0] % len(SONG_GROUPS)]
