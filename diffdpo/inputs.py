"""Digests of what a stage reads. A stage that is run again compares them with those of its results: it makes anew
what changed, drops what is gone, or refuses, and never takes results for those of another input.

Stages of many songs keep a digest in the row of each song; other stages keep theirs in the file inputs.json.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffdpo.runs import read_json, write_json

INPUTS = "inputs.json"
LARGE_FILE = 1 << 26
"""Size in bytes from which the digest of a file is that of its size and of blocks of its content."""
BLOCK, BLOCKS = 1 << 16, 64


def digest(value: Any) -> str:
    """Identity of a value of JSON's types, dataclasses, tuples, and arrays of numpy: 32 hexadecimal digits.

    Equal values have equal digests on every machine; the order of a mapping's keys does not count.
    """
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return [str(value.dtype), value.shape, content]
    raise TypeError(f"no digest of a {type(value).__name__}")


def rows_digest(rows: Iterable[Any]) -> str:
    """Identity of many dataclass instances in their order, without holding their text in memory."""
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(vars(row), sort_keys=True, default=_plain).encode() + b"\n")
    return total.hexdigest()[:32]


def content_digest(path: Path) -> str:
    """Identity of a file, or of all files of a folder, by their content.

    Of a file of 64 MiB and more, its size and 64 blocks at even distances are read: other weights and other
    recordings differ in all of them. A path that does not exist has the digest "".
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest([[str(file.relative_to(path)), content_digest(file)] for file in files])
    if not path.is_file():
        return ""
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, size: int, _modified_ns: int) -> str:
    """The digest of a file, computed once a process for each state of the file."""
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size < LARGE_FILE:
            while block := file.read(1 << 22):
                total.update(block)
        else:
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                total.update(file.read(BLOCK))
    return total.hexdigest()[:32]


def read_inputs(folder: Path) -> dict[str, str]:
    """The digests in a folder by name of the input; {} for a folder without them, as older versions left it."""
    path = folder / INPUTS
    return dict(read_json(path)) if path.is_file() else {}


def write_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    """Write the digests of what the results in a folder were made from."""
    if read_inputs(folder) != inputs:
        write_json(folder / INPUTS, dict(inputs))


def changed_inputs(folder: Path, inputs: Mapping[str, str]) -> list[str]:
    """The names of inputs whose digests differ from those in the folder. Inputs without one there are equal."""
    earlier = read_inputs(folder)
    return [name for name, value in inputs.items() if earlier.get(name, value) != value]
