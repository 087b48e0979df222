"""Rows of published files (Parquet, CSV, JSON, JSON lines) with their places, and the cells of such a row.

Sound in a Parquet column, {bytes, path} as `datasets` writes it, is not kept in memory: the cell says where it is.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.text_files import parse_json, read_jsonl, read_text

TABLE_SUFFIXES = (".parquet", ".csv", ".json", ".jsonl", ".ndjson")
AUDIO_SUFFIXES = (".flac", ".mp3", ".ogg", ".opus", ".wav")


@dataclass(frozen=True)
class EmbeddedSound:
    """A sound in a Parquet file: its place, and the name that the data set gives it."""

    file: Path
    group: int
    """Number of the row group."""
    row: int
    """Number of the row in its group."""
    column: str
    name: str = ""
    location: str = ""
    """File and row, as an error names them."""


SoundSource = Path | EmbeddedSound
"""The sound of a song: an audio file, or a cell of a Parquet file."""


@dataclass(frozen=True)
class Record:
    """One row of a published file, and where it stands: file and line, or file and row."""

    location: str
    cells: Mapping[str, Any]
    file: Path

    def text(self, name: str) -> str:
        """A cell as text; "" for one that is absent or null. DataError for a list or an object."""
        value = self.cells.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, dict | list | EmbeddedSound):
            raise DataError(f"{self.location}: {name} must be text, got {type(value).__name__}")
        return str(value)

    def required_text(self, name: str) -> str:
        """A cell as text; DataError where it is empty."""
        value = self.text(name).strip()
        if not value:
            raise DataError(f"{self.location}: {name} is empty")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        """A cell as a number in a range; 0 where it is empty. DataError otherwise."""
        text = self.text(name).strip()
        if not text:
            return 0.0
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise DataError(
                f"{self.location}: {name} must be a number from {low:g} to {high:g}, got {text!r}"
            )
        return value

    def seconds(self, name: str) -> float:
        """A cell as seconds: a number, or HH:MM:SS; 0 where it is empty."""
        text = self.text(name).strip()
        if ":" not in text:
            return self.number(name, 0, 1e6)
        try:
            parts = [float(part) for part in text.split(":")]
        except ValueError:
            parts = []
        if not 2 <= len(parts) <= 3 or min(parts) < 0 or max(parts[1:]) >= 60:
            raise DataError(f"{self.location}: {name} must be seconds or HH:MM:SS, got {text!r}")
        return math.fsum(part * 60**power for power, part in enumerate(reversed(parts)))

    def word(self, name: str, words: Mapping[str, str]) -> str:
        """The meaning of a cell that holds one of some words. DataError for another word."""
        text = self.text(name).strip()
        if text not in words:
            raise DataError(
                f"{self.location}: {name} must be one of {', '.join(map(repr, words))}, got {text!r}"
            )
        return words[text]

    def instant(self, name: str) -> float:
        """A cell as seconds since 1970, from such a number or from ISO 8601; 0 where it is empty."""
        value = self.cells.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        text = self.text(name).strip()
        try:
            return float(text) if text else 0.0
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise DataError(f"{self.location}: {name} must be a time in ISO 8601, got {text!r}") from None


def read_records(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    """The rows of a file that has all of `columns`, perhaps others besides.

    DataError names the file, and the line or row, of what cannot be read or lacks a column.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(file, columns)
    elif suffix == ".csv":
        yield from _csv_records(file, columns)
    elif suffix in (".jsonl", ".ndjson"):
        for number, row in read_jsonl(file):
            yield _record(row, columns, f"{file}:{number}", file)
    elif suffix == ".json":
        yield from _json_records(file, columns)
    else:
        raise DataError(f"{file}: not one of the kinds {', '.join(TABLE_SUFFIXES)}")


def check_columns(names: Iterable[str], columns: Sequence[str], location: str) -> None:
    """DataError for the first of `columns` that a table lacks."""
    present = list(names)
    for column in columns:
        if column not in present:
            hint = closest(column, present)
            raise DataError(f"{location}: has no column {column!r}.{hint} Needed: {', '.join(columns)}.")


def _record(row: Mapping[str, Any], columns: Sequence[str], location: str, file: Path) -> Record:
    check_columns(row, columns, location)
    return Record(location, row, file)


def _json_records(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    value = parse_json(read_text(file), str(file))
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, start=1):
        location = f"{file}, entry {number}" if isinstance(value, list) else str(file)
        if not isinstance(row, dict):
            raise DataError(f"{location}: expected an object, got {type(row).__name__}")
        yield _record(row, columns, location, file)


def _csv_records(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        check_columns(header, columns, f"{file}:1")
        if len(set(header)) < len(header):
            raise DataError(f"{file}:1: two columns have the same name")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{file}:{reader.line_num}: {len(cells)} cells, but the header has {len(header)}"
                )
            yield Record(f"{file}:{reader.line_num}", dict(zip(header, cells, strict=True)), file)
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not valid CSV ({error})") from None


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            check_columns(names, columns, str(file))
            number = 0
            for group in range(table.num_row_groups):
                rows = table.read_row_group(group, columns=_columns_to_read(table, group))
                cells = {name: _cells(rows[name], name, file, group, number) for name in names}
                for row in range(rows.num_rows):
                    number += 1
                    values = {name: column[row] for name, column in cells.items()}
                    yield Record(f"{file}, row {number}", values, file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def _is_sound(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _columns_to_read(table: pq.ParquetFile, group: int) -> list[str]:
    """All columns of a row group, but the content of sounds only where some of it may be missing."""
    metadata = table.metadata.row_group(group)
    leaves = [metadata.column(number) for number in range(metadata.num_columns)]
    complete = {
        leaf.path_in_schema
        for leaf in leaves
        if leaf.statistics is not None and leaf.statistics.null_count == 0
    }
    return [
        f"{field.name}.path" if _is_sound(field.type) and f"{field.name}.bytes" in complete else field.name
        for field in table.schema_arrow
    ]


def _cells(column: pa.ChunkedArray, name: str, file: Path, group: int, first: int) -> list[Any]:
    """The values of a column; of sounds their places, or only their names where there is no content."""
    fields = {field.name for field in column.type} if pa.types.is_struct(column.type) else set()
    if fields != {"path"} and not _is_sound(column.type):
        values: list[Any] = column.to_pylist()
        return values
    names = pc.struct_field(column, "path").to_pylist()
    sizes = [1] * len(names)
    if "bytes" in fields:
        sizes = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes")), 0).to_pylist()
    return [
        EmbeddedSound(file, group, row, name, path or "", f"{file}, row {first + row + 1}")
        if size
        else (path or "")
        for row, (size, path) in enumerate(zip(sizes, names, strict=True))
    ]


def read_embedded(sound: EmbeddedSound) -> bytes:
    """The content of a sound in a Parquet file."""
    column = _sound_column(sound.file, sound.group, sound.column)
    content: bytes = column[sound.row].as_py()["bytes"]
    return content


@lru_cache(maxsize=1)
def _sound_column(file: Path, group: int, column: str) -> pa.ChunkedArray:
    """A column of one row group, the latest in memory: sounds are read in the order of the rows."""
    with pq.ParquetFile(file) as table:
        return table.read_row_group(group, columns=[column])[column]
