"""Schemas of tables: row type, key, version, and the column types that follow from the row type.

A row type is a frozen dataclass with keyword fields. Its annotations are the types of the columns, also of a column
of empty lists or without rows; its defaults fill columns that an older table lacks. Name and version of a table are
written into every file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from diffdpo.errors import DataError
from diffdpo.text_files import printable

RowT = TypeVar("RowT")

TABLE_NAME = b"diffdpo.table"
TABLE_VERSION = b"diffdpo.version"
"""Keys of the metadata of a part."""

SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _identity(table: pa.Table, version: int) -> pa.Table:
    return table


@dataclass(frozen=True)
class TableSpec(Generic[RowT]):
    """One kind of table."""

    name: str
    row: type[RowT]
    """The row type, whose fields are the columns."""
    key: tuple[str, ...]
    """The columns that identify a row: of rows with equal keys the last written counts."""
    version: int = 1
    """Version of the columns, raised when they change. Tables of version 0 have no version in their files."""
    upgrade: Callable[[pa.Table, int], pa.Table] = _identity
    """Function from a table of an older version to the present columns; new columns with a default need none."""

    @property
    def folder(self) -> str:
        """Name of the folder with the parts of a table."""
        return f"{self.name}.parquet"

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in fields(self.row))  # type: ignore[arg-type]

    @property
    def schema(self) -> pa.Schema:
        """Name and type of each column, with the table's name and version as metadata."""
        types = column_types(self.row)
        columns = [pa.field(name, types[name], nullable=False) for name in self.columns]
        return pa.schema(columns, metadata={TABLE_NAME: self.name, TABLE_VERSION: str(self.version)})


def column_types(row: Any) -> dict[str, pa.DataType]:
    """The type of each column of a row type."""
    hints = get_type_hints(row)
    return {field.name: arrow_type(hints[field.name]) for field in fields(row)}


def arrow_type(hint: Any) -> pa.DataType:
    """The column type of an annotation: scalars, tuples (of any length, or fixed) and mappings of these."""
    if hint in SCALARS:
        return SCALARS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Mapping:
        return pa.map_(*map(arrow_type, args))
    if origin is tuple and args[-1] is Ellipsis:
        return pa.list_(arrow_type(args[0]))
    if origin is tuple and len(set(args)) == 1:
        return pa.list_(arrow_type(args[0]), len(args))
    raise TypeError(f"no column type for {hint}")


def to_columns(rows: Sequence[RowT], spec: TableSpec[RowT]) -> pa.Table:
    """An Arrow table of rows; bytes of file names that are not UTF-8 are escaped."""
    arrays, schema = [], spec.schema
    for column in schema:
        values = [getattr(row, column.name) for row in rows]
        if column.type == pa.string():
            values = list(map(printable, values))
        if pa.types.is_map(column.type):
            values = [list(value.items()) for value in values]
        arrays.append(pa.array(values, column.type))
    return pa.table(arrays, schema=schema)


def to_rows(table: pa.Table, spec: TableSpec[RowT]) -> list[RowT]:
    """The rows of an Arrow table."""
    columns = [_values(table[name], kind) for name, kind in column_types(spec.row).items()]
    return [spec.row(**dict(zip(spec.columns, values, strict=True))) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray, kind: pa.DataType) -> list[Any]:
    """Python values of a column, lists as tuples and maps as dicts."""
    values = column.cast(kind).to_pylist()
    if pa.types.is_map(kind):
        return [dict(value) for value in values]
    return [_tuples(value) for value in values] if pa.types.is_nested(kind) else values


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check_table_part(schema: pa.Schema, spec: TableSpec[Any], path: Path) -> int:
    """The version of a table's part. DataError for a part of another table or of a newer diffdpo."""
    metadata = schema.metadata or {}
    name, version = metadata.get(TABLE_NAME, b"").decode(), int(metadata.get(TABLE_VERSION, b"0"))
    if name not in ("", spec.name):
        raise DataError(
            f"{path}: is part of a table of {name}, not of {spec.name}; move it to a folder of its own"
        )
    if version > spec.version:
        raise DataError(
            f"{path}: the table of {spec.name} has version {version} and this diffdpo reads up to {spec.version}; "
            "update diffdpo"
        )
    return version


def conform(table: pa.Table, spec: TableSpec[Any], columns: Iterable[str], path: Path) -> pa.Table:
    """Some columns of a table in the present types, with defaults for columns that it lacks.

    Dictionary-encoded text stays so. DataError for a column that is missing and has no default, or is of another
    type.
    """
    types, by_name = column_types(spec.row), {field.name: field for field in fields(spec.row)}
    arrays = {name: _column(table, by_name[name], types[name], path) for name in columns}
    return pa.table(arrays)


def _column(table: pa.Table, field: "Field[Any]", kind: pa.DataType, path: Path) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        default = default_of(field)
        if default is MISSING:
            raise DataError(
                f"{path}: not a table of this kind (no column {field.name!r}); move it away, or name another folder"
            )
        value = list(default.items()) if isinstance(default, Mapping) else default
        column = pa.chunked_array([pa.repeat(pa.scalar(value, kind), table.num_rows)])
        return column.dictionary_encode() if kind == pa.string() else column
    column = table[field.name]
    if column.null_count:
        column = _without_nulls(column, field, path)
    present = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if present == kind:
        return column
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{path}: column {field.name!r} holds {present}, it should be {kind}") from None


def _without_nulls(column: pa.ChunkedArray, field: "Field[Any]", path: Path) -> pa.ChunkedArray:
    default = default_of(field)
    if default is MISSING or pa.types.is_nested(column.type):
        raise DataError(f"{path}: column {field.name!r} has rows without a value")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pc.fill_null(column, default)


def default_of(field: "Field[Any]") -> Any:
    """The default of a column that an older table lacks; MISSING if the column is required."""
    return field.default if field.default_factory is MISSING else field.default_factory()
