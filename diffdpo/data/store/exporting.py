"""Exporting a store as a data set of `datasets`: Parquet files by split, and a card.

Only rows leave whose license lets everybody pass them on and, where people gave a consent, whose consent says so.
Splits follow from the group of the prompt. Names of raters, what they said about themselves, their comments and the
time of a vote (by which votes of a person could be told) are left out unless they are asked for.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from diffdpo.data.licenses import DataTerms, license_kind, may_share, merge_terms
from diffdpo.data.prompts import in_share
from diffdpo.data.schema import TableSpec
from diffdpo.data.store.card import dataset_card
from diffdpo.data.store.folder import SHARE_SCOPE, STORE_SONGS, Store, StoreSongRow
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow
from diffdpo.errors import ConfigError, DataError
from diffdpo.runs import publish

EXPORT_SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.1
"""Share of the groups in each of validation and test."""
PRIVATE_COLUMNS = ("rater", "rater_group", "comment", "created_at")
LOCAL_COLUMNS = ("samples", "samples_a", "samples_b", "file")
"""Columns that name folders of this machine."""
AUDIO_COLUMN = "audio"
R = TypeVar("R", VoteRow, OpinionRow, StoreSongRow)


@dataclass(frozen=True, kw_only=True)
class StoreExportOptions:
    """What leaves a store."""

    raters: bool = False
    """With PRIVATE_COLUMNS."""
    audio: bool = False
    """With the sounds of the songs."""
    commercial: bool = False
    """Only what may be used commercially."""
    name: str = ""
    """Name of the data set, for the card; empty for that of the folder."""


@dataclass(frozen=True, kw_only=True)
class StoreExport:
    """What was exported, and what was left out and why."""

    out: Path
    sizes: Mapping[str, Mapping[str, int]]
    """Rows by table and split."""
    skips: Mapping[str, int]
    terms: DataTerms = field(default_factory=DataTerms)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [
            f"{name}: " + ", ".join(f"{count} {split}" for split, count in sizes.items())
            for name, sizes in self.sizes.items()
        ]
        skips = [f"{count} left out: {reason}" for reason, count in sorted(self.skips.items())]
        return [f"{self.out}: {', '.join(self.terms.names)}", *lines, *skips]


def export_store(store: Store, out: Path, options: StoreExportOptions) -> StoreExport:
    """Write the data set. ConfigError for a folder that exists; DataError where nothing may leave."""
    if out.exists():
        raise ConfigError(f"{out}: exists; remove it or choose another folder")
    scopes, skips = store.consent_scopes(), Counter[str]()
    reasons = _Reasons(scopes, options.commercial, skips)
    songs = {row.sha256: row for row in store.songs()}
    rows: dict[str, Sequence[Any]] = {
        "votes": [row for row in store.votes() if reasons.allow(row, "votes")],
        "opinions": [row for row in store.opinions() if reasons.allow(row, "opinions")],
        "songs": [row for row in songs.values() if reasons.allow(row, "songs")],
    }
    rows = {name: part for name, part in rows.items() if part}
    if not rows:
        details = "; ".join(f"{count} {reason}" for reason, count in sorted(skips.items()))
        raise DataError(f"{store.folder}: nothing may be passed on ({details or 'it is empty'})")
    parts = {name: rows_by_split(part) for name, part in rows.items()}
    sizes = {name: {split: len(part) for split, part in splits.items()} for name, splits in parts.items()}
    terms = merge_terms(_terms(row) for part in rows.values() for row in part)
    export = StoreExport(out=out, sizes=sizes, skips=dict(skips), terms=terms)

    def write(folder: Path) -> None:
        columns: dict[str, list[str]] = {}
        for name, splits in parts.items():
            for split, part in splits.items():
                path = folder / name / f"{split}.parquet"
                path.parent.mkdir(exist_ok=True)
                columns[name] = _write_part(path, name, part, songs, store, options)
        card = dataset_card(options.name or out.name, export.sizes, columns, terms, skips)
        (folder / "README.md").write_text(card, encoding="utf-8")

    publish(out, write, terms.entries())  # not the store, most of whose terms are not those of these rows
    return export


@dataclass(frozen=True)
class _Reasons:
    """Why rows stay: counted as they are met."""

    scopes: Mapping[str, str]
    commercial: bool
    skips: Counter[str]

    def allow(self, row: VoteRow | OpinionRow | StoreSongRow, name: str) -> bool:
        """Whether a row may leave; where not, the reason is counted."""
        reason = self.reason(row)
        if reason:
            self.skips[f"{name}: {reason}"] += 1
        return not reason

    def reason(self, row: VoteRow | OpinionRow | StoreSongRow) -> str:
        """Why a row may not leave; empty if it may."""
        if license_kind(row.license) == "unknown":
            return "no license is stated"
        if not may_share(row.license):
            return f"{row.license} does not let everybody pass them on"
        if self.commercial and license_kind(row.license) == "non-commercial":
            return f"{row.license} forbids commercial use"
        consent = "" if isinstance(row, StoreSongRow) else row.consent
        scope = self.scopes.get(consent, "")
        if consent and scope != SHARE_SCOPE:
            return f"consent {consent} is {f'to {scope} only' if scope else 'of no stated scope'}"
        return ""


def _terms(row: VoteRow | OpinionRow | StoreSongRow) -> DataTerms:
    consent = "" if isinstance(row, StoreSongRow) else row.consent
    return DataTerms({row.source: (row.license,)}, (consent,) if consent else ())


def rows_by_split(rows: Iterable[R]) -> dict[str, list[R]]:
    """Rows by the split of their groups; splits without a row are left out."""
    splits: dict[str, list[R]] = {name: [] for name in EXPORT_SPLITS}
    for row in rows:
        splits[split_of(_group(row))].append(row)
    return {name: part for name, part in splits.items() if part}


def _group(row: VoteRow | OpinionRow | StoreSongRow) -> str:
    if isinstance(row, StoreSongRow):
        return row.group or row.sha256
    song = row.song_a if isinstance(row, VoteRow) else row.song
    return row.group or row.prompt_id or song


def split_of(group: str) -> str:
    """The split of a group, by a hash of its name."""
    if in_share(group, HELD_OUT_SHARE, "export test"):
        return "test"
    return (
        "validation"
        if in_share(group, HELD_OUT_SHARE / (1 - HELD_OUT_SHARE), "export validation")
        else "train"
    )


def _write_part(
    path: Path,
    name: str,
    rows: Sequence[Any],
    songs: Mapping[str, StoreSongRow],
    store: Store,
    options: StoreExportOptions,
) -> list[str]:
    """Write one split of one table; the names of its columns."""
    specs: dict[str, TableSpec[Any]] = {"votes": VOTES, "opinions": OPINIONS, "songs": STORE_SONGS}
    left_out = {*LOCAL_COLUMNS, *(() if options.raters else PRIVATE_COLUMNS)}
    columns: dict[str, pa.Array] = {}
    for column in specs[name].schema:
        if column.name in left_out:
            continue
        values = [_plain(getattr(row, column.name)) for row in rows]
        if column.name in ("song", "song_a", "song_b"):
            values = [_song_name(row, column.name, songs) for row in rows]
        columns[column.name] = pa.array(values, _plain_type(column.type))
    table = pa.table(columns)
    if name == "songs" and options.audio:
        _write_songs(path, table, rows, store)
    else:
        pq.write_table(table, path)
    return [*table.column_names, *([AUDIO_COLUMN] if name == "songs" and options.audio else [])]


def _plain(value: Any) -> Any:
    """A value in a type that `datasets` has: mappings as JSON."""
    return (
        json.dumps(dict(value), ensure_ascii=False, sort_keys=True) if isinstance(value, Mapping) else value
    )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_map(kind):
        return pa.string()
    if pa.types.is_list(kind):  # spans: pairs of numbers
        return pa.list_(pa.list_(pa.float64()))
    return kind


def _song_name(row: VoteRow | OpinionRow, column: str, songs: Mapping[str, StoreSongRow]) -> str:
    """What a song is called in its data set, which names no folder of this machine."""
    song = songs.get(getattr(row, column.replace("song", "sha256")))
    return song.song_id if song is not None and song.song_id else str(getattr(row, column))


AUDIO_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _write_songs(path: Path, table: pa.Table, rows: Sequence[StoreSongRow], store: Store) -> None:
    """The songs with their sounds, a row group each: one sound is in memory at a time."""
    schema = table.schema.append(pa.field(AUDIO_COLUMN, AUDIO_TYPE))
    features: dict[str, Any] = {
        field.name: {"dtype": str(field.type).replace("double", "float64"), "_type": "Value"}
        for field in table.schema
    }
    features[AUDIO_COLUMN] = {"_type": "Audio"}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with pq.ParquetWriter(path, schema) as writer:
        for number, row in enumerate(rows):
            file = store.path(row)
            if not file.is_file():
                raise DataError(f"{file}: the sound of song {row.song_id!r} is gone; export without --audio")
            sound = pa.array([{"bytes": file.read_bytes(), "path": f"{row.sha256}{file.suffix}"}], AUDIO_TYPE)
            part = table.slice(number, 1).append_column(AUDIO_COLUMN, sound)
            writer.write_table(part.cast(schema))
