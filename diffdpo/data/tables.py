"""Parquet tables that grow: a folder of parts, each written atomically, read as one, compacted at the end.

Parquet files cannot be appended to. Every process writes parts of its own; rows with the same key replace
earlier ones, so re-doing work is harmless.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffdpo.errors import DataError
from diffdpo.runs import sync

Row = dict[str, Any]


def append(folder: Path, rows: Sequence[Row], *, rank: int = 0) -> None:
    """Add rows as one new part."""
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"part-{rank:05d}-*.parquet")]
    _write(folder / f"part-{rank:05d}-{max(taken, default=-1) + 1:06d}.parquet", rows)


def read(folder: Path, key: Sequence[str]) -> list[Row]:
    """All rows, of those with equal keys the last written. A missing folder is an empty table.

    Raises DataError for a damaged part, naming it: its rows are recomputed once it is deleted.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    parts = sorted(folder.glob("*.parquet"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in parts:
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{path}: damaged ({str(error).splitlines()[0]}); delete it and run again"
            ) from None
        missing = [name for name in key if name not in table.column_names]
        if missing:
            raise DataError(f"{path}: not a table of this kind (no column {missing[0]!r})")
        for row in table.to_pylist():
            rows[tuple(row[name] for name in key)] = row
    return list(rows.values())


def compact(folder: Path, key: Sequence[str]) -> None:
    """Rewrite a table as one file, sorted by key. A kill in between leaves duplicates, which `read` resolves."""
    rows = sorted(read(folder, key), key=lambda row: [str(row[name]) for name in key])
    if len(list(folder.glob("*.parquet"))) > 1:
        replace(folder, rows)


def replace(folder: Path, rows: Sequence[Row]) -> None:
    """Make these the rows of a table, in one file."""
    parts = list(folder.glob("*.parquet"))
    whole = folder / "part-00000-000000.parquet"
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        _write(whole, rows)
    for path in parts:
        if path != whole or not rows:
            path.unlink()


def _write(path: Path, rows: Sequence[Row]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pq.write_table(pa.Table.from_pylist(list(rows)), partial)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
