"""Run directories: files that are complete or absent, and the manifest that is written last."""

import errno
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from diffdpo.errors import DataError
from diffdpo.text_files import parse_json, printable, read_text

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder with those above it. DataError where no folder can be, as below /proc."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG, errno.EPERM):
            raise  # the command line has words for a full disk and a missing permission
        raise DataError(
            f"{folder}: no folder can be made here ({error.strerror}); choose another out=…"
        ) from None


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a hidden sibling, flush it, rename it: a kill leaves the old file or the new one, never half."""
    atomic_write_parts(path, [content])


def atomic_write_parts(path: Path, parts: Iterable[bytes | str]) -> None:
    """The same for content in parts, one of them in memory at a time; an error in `parts` leaves the old file."""
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(printable(part).encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_if_changed(path: Path, content: str) -> None:
    """Write a text file, unless the file already holds this text."""
    if not path.is_file() or path.read_bytes() != printable(content).encode():
        atomic_write(path, content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with sorted keys; NaN and infinity, which JSON lacks, as null."""
    atomic_write(path, json.dumps(_finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """A value with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """The value in a JSON file; DataError when it is missing or not JSON."""
    return parse_json(read_text(path), str(path))


def publish(
    final: Path,
    write: Callable[[Path], None],
    manifest: Mapping[str, Any],
    *,
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Create a directory in one step: every process writes into a hidden sibling, then one renames it.

    Needs a file system that all processes share. An existing directory of that name is replaced.
    """
    partial_folder = final.with_name(f".{final.name}.partial")
    if is_main:
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
    barrier()
    write(partial_folder)
    barrier()
    if is_main:
        text = json.dumps(dict(manifest), indent=2, sort_keys=True) + "\n"
        (partial_folder / MANIFEST).write_text(text, encoding="utf-8")
        for path in [*partial_folder.rglob("*"), partial_folder]:
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial_folder.rename(final)
        sync(final.parent)
    barrier()
    return final


def finish(folder: Path, **entries: Any) -> None:
    """Write the manifest of a stage, as its last file: a folder with a manifest is complete."""
    write_json(folder / MANIFEST, {**entries, "versions": versions()})


def is_finished(folder: Path) -> bool:
    """Whether a folder holds the manifest of a complete stage."""
    return (folder / MANIFEST).is_file()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = (
        "diffdpo",
        "torch",
        "torchaudio",
        "accelerate",
        "deepspeed",
        "peft",
        "diffusers",
        "numpy",
        "librosa",
    )
    numbers = {"python": platform.python_version()}
    for name in names:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


class Metrics:
    """The file metrics.jsonl of a run: an object a step, cut back to the step that a resumed run starts from."""

    def __init__(self, folder: Path, *, keep_until: int) -> None:
        self.path = folder / METRICS
        lines = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line a kill cut short
                if isinstance(row, dict) and row.get("step", 0) <= keep_until:
                    lines.append(line)
        atomic_write(self.path, "".join(f"{line}\n" for line in lines))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append the metrics of a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
