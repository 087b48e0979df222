"""Parquet tables that grow: a folder of parts, each written at once, read as one table, compacted at the end.

Parquet files cannot be appended to, so every process writes separate parts. The order of parts is a logical clock:
the name of a part has a number one above the highest at its start, then the rank of the process. Of rows with equal
keys the last in that order counts, so that repeated work is harmless; the clock of the file system is not used.
Functions take the folder that a stage wrote, which holds the table's folder.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from errno import EMLINK, ENOSYS, ENOTSUP, EPERM, EXDEV
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from diffdpo.data.schema import RowT, TableSpec, check_table_part, conform, to_columns, to_rows
from diffdpo.errors import DataError
from diffdpo.runs import sync

UNIQUE = b"diffdpo.unique"
"""Metadata of a part without duplicate keys: a table of one such part needs no search for duplicates."""
ROW_GROUP = 1 << 20
DICTIONARY_BYTES = 1 << 27
"""Size of a dictionary that holds the hashes of a row group; text beyond it is written in full and reads slowly."""
NO_LINKS = {EPERM, ENOTSUP, ENOSYS, EMLINK, EXDEV}


@dataclass(frozen=True, order=True)
class TablePart:
    """One file of a table. Parts are ordered by sequence, then by rank."""

    sequence: int
    rank: int
    path: Path


def list_parts(path: Path) -> list[TablePart]:
    """The parts of a table in the folder `path`, the oldest first.

    Names are `part-sSEQUENCE-rRANK.parquet`, in tables of version 0 `part-RANK-SEQUENCE.parquet`; files of other
    names count as older than all of these.
    """
    parts = []
    for file in path.glob("*.parquet"):
        if match := re.fullmatch(r"part-s(\d+)-r(\d+)", file.stem):
            parts.append(TablePart(int(match[1]), int(match[2]), file))
        elif match := re.fullmatch(r"part-(\d+)-(\d+)", file.stem):
            parts.append(TablePart(int(match[2]), int(match[1]), file))
        else:
            parts.append(TablePart(-1, 0, file))
    return sorted(parts)


def append(folder: Path, spec: TableSpec[RowT], rows: Sequence[RowT], *, rank: int = 0) -> None:
    """Add rows to a table as one new part."""
    if rows:
        _publish(folder / spec.folder, to_columns(rows, spec), spec.schema, rank)


def read_rows(folder: Path, spec: TableSpec[RowT]) -> list[RowT]:
    """All rows of a table in the order of writing; of rows with equal keys the last.

    A missing table is empty. DataError for a part that is damaged, newer, or of another table.
    """
    return to_rows(read_columns(folder, spec), spec)


def read_columns(folder: Path, spec: TableSpec[Any], columns: Iterable[str] = ()) -> pa.Table:
    """Some columns of a table, all by default, with the same rows as `read_rows`. Text is dictionary-encoded.

    Only the requested columns, and the key if there may be duplicates, are read from disk.
    """
    parts = list_parts(folder / spec.folder)
    try:
        return _read(parts, spec, tuple(columns) or spec.columns)
    except FileNotFoundError:
        if list_parts(folder / spec.folder) == parts:
            raise
        return read_columns(folder, spec, columns)  # another process compacted the table meanwhile


def read_distinct(folder: Path, spec: TableSpec[Any], columns: Sequence[str]) -> set[tuple[Any, ...]]:
    """The distinct combinations of values in some columns of a table."""
    table = read_columns(folder, spec, columns)
    table = table.take(_last_of_each(table, columns))
    return set(zip(*(table[name].to_pylist() for name in columns), strict=True))


def compact(folder: Path, spec: TableSpec[Any]) -> None:
    """Rewrite a table of several parts as one, sorted by key.

    The new part is ordered after the old parts, which are deleted last: a kill in between leaves duplicates, which
    reading resolves.
    """
    parts = list_parts(folder / spec.folder)
    if len(parts) > 1:
        table = _read(parts, spec, spec.columns)
        _replace(folder / spec.folder, spec, table.take(_last_of_each(table, spec.key)), parts)


def replace(folder: Path, spec: TableSpec[RowT], rows: Sequence[RowT] | pa.Table) -> None:
    """Replace a table by one part with `rows`, in their order; without rows the table is deleted.

    Of rows with equal keys the last is kept.
    """
    table = rows if isinstance(rows, pa.Table) else to_columns(rows, spec)
    parts = list_parts(folder / spec.folder)
    if table.num_rows:
        order = np.sort(_last_of_each(table, spec.key))
        _replace(folder / spec.folder, spec, table.take(order), parts)
    else:
        _delete(parts)


def _replace(path: Path, spec: TableSpec[Any], table: pa.Table, parts: Iterable[TablePart]) -> None:
    """Write a table without duplicate keys as one part, then delete the parts that it replaces."""
    schema = spec.schema.with_metadata({**spec.schema.metadata, UNIQUE: "true"})
    _publish(path, table, schema, rank=0)
    _delete(parts)


def _delete(parts: Iterable[TablePart]) -> None:
    for part in parts:
        part.path.unlink(missing_ok=True)


def _read(parts: Sequence[TablePart], spec: TableSpec[Any], columns: tuple[str, ...]) -> pa.Table:
    with_key = tuple(dict.fromkeys((*columns, *spec.key)))
    pieces = [_read_part(part.path, spec, columns if len(parts) == 1 else with_key) for part in parts]
    if not pieces:
        return spec.schema.empty_table().select(list(columns))
    table = pa.concat_tables([piece for piece, _ in pieces]).unify_dictionaries().combine_chunks()
    if len(pieces) > 1 or not pieces[0][1]:
        rows = np.sort(_last_of_each(table, spec.key))
        table = table if len(rows) == table.num_rows else table.take(rows)
    return table.select(list(columns))


def _read_part(path: Path, spec: TableSpec[Any], columns: tuple[str, ...]) -> tuple[pa.Table, bool]:
    """Columns of one part in the present version, and whether the part has no duplicate keys.

    A part that may have duplicates comes with the columns of the key.
    """
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        version, unique = check_table_part(schema, spec, path), UNIQUE in (schema.metadata or {})
        text = [column.name for column in schema if column.type == pa.string()]
        with pq.ParquetFile(path, metadata=metadata, read_dictionary=text) as file:
            names = columns if unique else tuple(dict.fromkeys((*columns, *spec.key)))
            current = version == spec.version
            table = file.read(columns=[name for name in schema.names if name in names or not current])
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise _damage_error(path, error) from None
    table = conform(table if current else spec.upgrade(table, version), spec, names, path)
    for index, column in enumerate(table.columns):
        if column.type == pa.string():  # parts are put together as codes
            table = table.set_column(index, table.column_names[index], column.dictionary_encode())
    return table, unique


def _damage_error(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged ({str(error).splitlines()[0]}); delete it and run again")


def _last_of_each(table: pa.Table, key: Sequence[str]) -> Int[np.ndarray, " row"]:
    """Indices of the last row of each key, in the order of the keys."""
    if not table.num_rows:
        return np.zeros(0, np.int64)
    place, size = np.zeros(table.num_rows, np.int64), 1
    for name in key:
        codes, values = encode(table[name])
        ranks = np.empty(len(values), np.int64)
        ranks[pc.sort_indices(values).to_numpy()] = np.arange(len(values))
        if size * len(values) > np.iinfo(np.int64).max:
            _, place = np.unique(place, return_inverse=True)
            size = int(place.max()) + 1
        place, size = place * len(values) + ranks[codes], size * len(values)
    order = np.argsort(place, kind="stable")
    return order[np.append(np.diff(place[order]) != 0, True)]


def encode(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " row"], pa.Array]:
    """A column as indices into an array of its distinct values."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    if not column.num_chunks:  # a column without rows
        return np.zeros(0, np.int32), pa.array([], column.type.value_type)
    chunk = column.chunk(0) if column.num_chunks == 1 else column.unify_dictionaries().combine_chunks()
    return chunk.indices.to_numpy(zero_copy_only=False), chunk.dictionary


def _publish(path: Path, table: pa.Table, schema: pa.Schema, rank: int) -> None:
    """Write a part under a hidden name, then rename it to the first free number above all present parts."""
    path.mkdir(parents=True, exist_ok=True)
    sequence = max((part.sequence for part in list_parts(path)), default=-1) + 1
    partial = path / f".r{rank:05d}.{os.urandom(8).hex()}.partial"
    try:
        _write(partial, table, schema)
        sync(partial)
        while not _name(partial, path / f"part-s{sequence:08d}-r{rank:05d}.parquet"):
            sequence += 1
    finally:
        partial.unlink(missing_ok=True)


def _name(partial: Path, path: Path) -> bool:
    """Rename a partial file; False if another process has a part of that name, which is never overwritten."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        partial.replace(path)
    return True


def _write(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write one file in row groups. Text is decoded by group, or every group would repeat the whole dictionary."""
    text = [column.name for column in schema if column.type == pa.string()]
    with pq.ParquetWriter(
        path, schema, use_dictionary=text, dictionary_pagesize_limit=DICTIONARY_BYTES
    ) as writer:
        for start in range(0, table.num_rows, ROW_GROUP):
            writer.write_table(table.slice(start, ROW_GROUP).cast(schema), row_group_size=ROW_GROUP)
