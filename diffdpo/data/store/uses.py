"""Uses of data: which tables hold some votes, opinions or songs, and which models were made from them.

Tables are recognised by their columns, whatever wrote them; cards and manifests by the ids in them, in full or as
the first 16 digits of their hash. Whatever names such a folder, directly or through others, was made from it.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffdpo.data.lineage import RunFolder, find_runs
from diffdpo.data.samples import SAMPLES
from diffdpo.data.votes import OpinionRow, VoteRow

LARGEST_CARD = 1 << 25
"""Size in bytes up to which a JSON file, or the header of a file of weights, is searched for ids."""
SONG_COLUMNS_OF_TABLES = ("sha256", "sha256_a", "sha256_b")
PAIR_COLUMNS = ("sample_id", "winner", "loser")


@dataclass(frozen=True, kw_only=True)
class DataIds:
    """What identifies the data whose uses are looked for."""

    votes: frozenset[tuple[str, str]] = frozenset()
    """Source and id of votes."""
    opinions: frozenset[tuple[str, str]] = frozenset()
    songs: frozenset[str] = frozenset()
    """Hashes of sounds."""

    @classmethod
    def of(cls, votes: Sequence[VoteRow], opinions: Sequence[OpinionRow], songs: Sequence[str]) -> "DataIds":
        """The ids of rows."""
        return cls(
            votes=frozenset((row.source, row.vote_id) for row in votes),
            opinions=frozenset((row.source, row.opinion_id) for row in opinions),
            songs=frozenset(song for song in songs if song),
        )

    def words(self) -> frozenset[str]:
        """The ids as cards write them: in full, and the first 16 digits of their hash."""
        ids = {name for _, name in (*self.votes, *self.opinions)}
        hashes = {hashlib.sha256(name.encode()).hexdigest()[:16] for name in ids}
        return frozenset({*ids, *hashes, *self.songs, *(song[:16] for song in self.songs)})


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """A folder that contains data, or was made from it."""

    folder: Path
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows that hold the data, by table; ids in a card count as rows of the card."""
    parents: tuple[Path, ...] = ()
    """Folders with the data that this one was made from."""

    @property
    def is_model(self) -> bool:
        """Whether weights were trained here, or are here."""
        weights = (*self.folder.glob("*.safetensors"), *self.folder.glob("*.bin"))
        return bool(weights) or (self.folder / "checkpoints").is_dir()

    def line(self) -> str:
        """What the folder contains, and what has to be done with it."""
        row_text = ", ".join(f"{count} rows of {table}" for table, count in sorted(self.rows.items()))
        parent_text = ", ".join(str(parent) for parent in self.parents)
        parts = [row_text and f"holds {row_text}", parent_text and f"made from {parent_text}"]
        action = (
            "delete them there" if not parent_text else "train it again" if self.is_model else "make it again"
        )
        place = self.folder.relative_to(Path.cwd()) if self.folder.is_relative_to(Path.cwd()) else self.folder
        kind = "model" if self.is_model else "table" if self.rows else "run"
        return f"{kind} {place}: {'; '.join(filter(None, parts))}; {action}"


def find_uses(roots: Sequence[Path], ids: DataIds, origins: Sequence[Path] = ()) -> list[DataUse]:
    """The uses of data in all run folders below some folders, what was made from others behind them.

    `origins` are folders that held the data, whether or not they still do: the store, and what was added to it.
    """
    runs = find_runs([root for root in roots if root.is_dir()])
    for origin in origins:
        runs.setdefault(origin.resolve(), RunFolder(origin.resolve()))
    words = ids.words()
    rows = {path: _rows_of(run, ids, words) for path, run in runs.items()}
    holders = {path for path, counts in rows.items() if counts} | {origin.resolve() for origin in origins}
    parents = {path: run.parents(runs) for path, run in runs.items()}
    descendants = dict.fromkeys(holders)
    queue = list(holders)
    for place in queue:
        for path, names in parents.items():
            if (
                place in names
                and path not in descendants
                and not _lists_other_votes(runs[path], rows[path], ids)
            ):
                descendants[path] = None
                queue.append(path)
    return [
        DataUse(folder=path, rows=rows[path], parents=tuple(sorted(parents[path] & descendants.keys())))
        for path in _in_order({path: parents[path] & descendants.keys() for path in descendants})
        if path not in {origin.resolve() for origin in origins} or rows[path]
    ]


def _in_order(parents: Mapping[Path, set[Path]]) -> list[Path]:
    """Folders, each behind its parents; by path where they do not depend on each other."""
    order: list[Path] = []
    remainder = sorted(parents)
    while remainder:
        ready = [path for path in remainder if not (parents[path] & set(remainder)) - {path}] or remainder
        order += ready
        remainder = [path for path in remainder if path not in order]
    return order


def _lists_other_votes(run: RunFolder, rows: Mapping[str, int], ids: DataIds) -> bool:
    """Whether a folder says which votes it was made from, and these are not among them."""
    if rows or ids.songs or not (ids.votes or ids.opinions):
        return False
    return any("vote_id" in _names(files[0]) for files in run.tables.values()) or any(
        isinstance(card.get("votes"), dict) and card["votes"] for card in cards_of(run.path)
    )


def _rows_of(run: RunFolder, ids: DataIds, words: frozenset[str]) -> dict[str, int]:
    """The number of rows of each table, and of ids in each card, that hold the data."""
    counts: dict[str, int] = {}
    for name, files in run.tables.items():
        count = sum(_count(file, run.path, ids) for file in files)
        if count:
            counts[name] = count
    for card in cards_of(run.path):
        count = sum(text in words for text in _all_texts(card))
        if count:
            counts["its card"] = counts.get("its card", 0) + count
    return counts


def _names(file: Path) -> set[str]:
    try:
        return set(pq.read_schema(file).names)
    except (pa.ArrowInvalid, OSError):
        return set()


def _count(file: Path, folder: Path, ids: DataIds) -> int:
    """The number of rows of a Parquet file that hold the data."""
    names = _names(file)
    search_columns = {
        "vote_id",
        "opinion_id",
        "source",
        "samples",
        "samples_a",
        *SONG_COLUMNS_OF_TABLES,
        *PAIR_COLUMNS,
    }
    columns = sorted(names & search_columns)
    if not columns:
        return 0
    table = pq.read_table(file, columns=columns, partitioning=None)
    masks = [_id_mask(table, "vote_id", ids.votes), _id_mask(table, "opinion_id", ids.opinions)]
    masks += [_mask(table, name, ids.songs) for name in SONG_COLUMNS_OF_TABLES]
    if ids.songs and "samples" in names:
        masks += [_pair_mask(table, name, folder, ids.songs) for name in PAIR_COLUMNS]
    hits = [mask for mask in masks if mask is not None]
    if not hits:
        return 0
    total = hits[0]
    for mask in hits[1:]:
        total = pc.or_(total, mask)
    return int(pc.sum(total).as_py() or 0)


def _mask(table: pa.Table, name: str, values: frozenset[str]) -> Any:
    if name not in table.column_names or not values:
        return None
    return pc.is_in(pc.cast(table[name], pa.string()), pa.array(sorted(values), pa.string()))


def _id_mask(table: pa.Table, name: str, ids: frozenset[tuple[str, str]]) -> Any:
    """True for the rows with one of the ids, and its source where the table names sources."""
    if "source" not in table.column_names:
        return _mask(table, name, frozenset(text for _, text in ids))
    if name not in table.column_names or not ids:
        return None
    keys = pc.binary_join_element_wise(
        pc.cast(table["source"], pa.string()), pc.cast(table[name], pa.string()), "\0"
    )
    return pc.is_in(keys, pa.array(sorted(f"{source}\0{text}" for source, text in ids), pa.string()))


def _pair_mask(table: pa.Table, name: str, folder: Path, songs: frozenset[str]) -> Any:
    """True for pairs and ratings of samples with these sounds."""
    if name not in table.column_names:
        return None
    keys = set()
    for samples in pc.unique(table["samples"]).to_pylist():
        path = folder / samples / SAMPLES.folder
        for file in sorted(path.glob("*.parquet")):
            rows = pq.read_table(file, columns=["sample_id", "sha256"], partitioning=None).to_pylist()
            keys |= {f"{samples}\0{row['sample_id']}" for row in rows if row["sha256"] in songs}
    pair_keys = pc.binary_join_element_wise(
        pc.cast(table["samples"], pa.string()), pc.cast(table[name], pa.string()), "\0"
    )
    return pc.is_in(pair_keys, pa.array(sorted(keys), pa.string())) if keys else None


def cards_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The objects in a folder's JSON files, and in the headers of its files of weights."""
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size <= LARGEST_CARD:
            yield from _objects(path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            head = file.read(8)
            size = struct.unpack("<Q", head)[0] if len(head) == 8 else LARGEST_CARD + 1
            text = file.read(size) if size <= LARGEST_CARD else b""
        for header in _objects(text):
            for value in header.get("__metadata__", {}).values():
                yield from _objects(str(value).encode())


def _objects(content: bytes) -> Iterator[dict[str, Any]]:
    try:
        value = json.loads(content)
    except ValueError:
        return
    if isinstance(value, dict):
        yield value


def _all_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _all_texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _all_texts(entry)
