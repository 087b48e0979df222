"""Read TensorFlow V2 checkpoints ("tensor bundles") without TensorFlow.

A bundle is an `.index` file, a LevelDB table that maps names to protocol buffers, and `.data-?????-of-?????`
files, the raw tensors end to end. Formats: tensorflow/core/protobuf/tensor_bundle.proto,
leveldb/doc/table_format.md.
"""

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffdpo.errors import DataError

FOOTER_BYTES = 48
TABLE_MAGIC = 0xDB4775248B80FB57
BUNDLE_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    9: np.dtype("<i8"),
    19: np.dtype("<f2"),
}
"""The members of tensorflow.DataType that are plain numbers."""


@dataclass(frozen=True)
class Entry:
    """Type, shape and position of a tensor in the data file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int


def read_bundle(
    index: str | os.PathLike[str],
    data: str | os.PathLike[str],
    is_wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, np.ndarray]:
    """The tensors whose name is `wanted`, by name. Raises DataError when the files are not a whole bundle."""
    try:
        entries = {
            name: entry for name, entry in read_index(Path(index).read_bytes()).items() if is_wanted(name)
        }
        content = Path(data).read_bytes()
    except OSError as error:
        raise DataError(f"{index}: cannot read the checkpoint ({error.strerror or error})") from error
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise DataError(f"{index}: not an index of a TensorFlow V2 checkpoint ({error})") from error
    for name, entry in entries.items():
        if entry.offset + entry.size > len(content):
            raise DataError(f"{data}: ends before tensor {name!r}; the file is damaged")
    return {
        name: np.frombuffer(content, entry.dtype, math.prod(entry.shape), entry.offset).reshape(entry.shape)
        for name, entry in entries.items()
    }


def read_index(table: bytes) -> dict[str, Entry]:
    """All entries of an index, by name. The entry without a name is the header of the bundle."""
    footer = table[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
        raise ValueError("no table magic at the end")
    _, at = _handle(footer, 0)  # of the meta index, which is empty
    index_block, _ = _handle(footer, at)
    entries = {}
    for _, value in _block(table, *index_block):
        data_block, _ = _handle(value, 0)
        for key, message in _block(table, *data_block):
            fields = _message(message)
            if key:
                entries[key.decode()] = _entry(fields)
            elif fields.get(1, [1]) != [1] or fields.get(2, [0]) != [0]:
                raise ValueError("only little-endian bundles of one shard can be read")
    return entries


def _entry(fields: dict[int, list[Any]]) -> Entry:
    """BundleEntryProto: dtype = 1, shape = 2 (dim = 2 (size = 1)), offset = 4, size = 5."""
    dimensions = _message(fields[2][0]).get(2, []) if 2 in fields else []
    shape = tuple(_message(dimension).get(1, [0])[0] for dimension in dimensions)
    dtype = BUNDLE_DTYPES[fields[1][0]]
    size = fields.get(5, [0])[0]
    if size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{size} bytes for a tensor of shape {shape}")
    return Entry(dtype, shape, fields.get(4, [0])[0], size)


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of seven bits, the least significant first; and the position behind it."""
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _handle(buffer: bytes, at: int) -> tuple[tuple[int, int], int]:
    """A block's offset and size; and the position behind them."""
    offset, at = _varint(buffer, at)
    size, at = _varint(buffer, at)
    return (offset, size), at


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block. A key stores only what differs from the one before."""
    if table[offset + size] != 0:
        raise ValueError("compressed blocks cannot be read")
    block = table[offset : offset + size]
    num_restarts = struct.unpack("<I", block[-4:])[0]
    end, at, key = size - 4 * (num_restarts + 1), 0, b""
    while at < end:
        n_shared, at = _varint(block, at)
        n_own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:n_shared] + block[at : at + n_own]
        at += n_own
        yield key, block[at : at + length]
        at += length


def _message(buffer: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer by number: integers, or bytes where a field has a length."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(buffer):
        tag, at = _varint(buffer, at)
        kind = tag & 7
        value: Any
        if kind == 0:
            value, at = _varint(buffer, at)
        elif kind == 2:
            length, at = _varint(buffer, at)
            value, at = buffer[at : at + length], at + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(buffer[at : at + width], "little"), at + width
        else:
            raise ValueError(f"wire type {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields
