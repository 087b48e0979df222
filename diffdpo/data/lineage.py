"""Lineage: which run folders a run folder was made from, read from what every stage leaves behind.

The folders that a configuration, the names of inputs, a manifest or a table names are its parents. A path in a
configuration is relative to the working directory of its command: it is looked up from this one, and from the
folders above the run.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from diffdpo.data.licenses import DataTerms, merge_terms, terms_of_manifest
from diffdpo.errors import DataError
from diffdpo.inputs import INPUTS
from diffdpo.runs import CONFIG, MANIFEST
from diffdpo.text_files import read_text

FOLDER_COLUMNS = ("samples", "songs", "samples_a", "samples_b")
"""Columns of tables that name folders, relative to the table's."""
CONTENT_FOLDERS = {"audio", "latents", "embeddings", "plans", "pictures", "checkpoints", "features"}
"""Folders of files of a run, in which no other run is looked for."""
LONGEST_PATH = 1024
HASH = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True)
class RunFolder:
    """A folder that a stage wrote, or a store, or an exported adapter."""

    path: Path

    @cached_property
    def tables(self) -> dict[str, list[Path]]:
        """The Parquet files of each table, by the table's name in the folder."""
        tables: dict[str, list[Path]] = {}
        for entry in sorted([*self.path.glob("*.parquet"), *self.path.glob("data/**/*.parquet")]):
            files = sorted(entry.glob("*.parquet")) if entry.is_dir() else [entry]
            if files:
                tables[str(entry.relative_to(self.path))] = files
        return tables

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest; {} for a folder without one."""
        return _read_object(self.path / MANIFEST)

    @cached_property
    def texts(self) -> set[str]:
        """All texts that may name a folder: in configuration, inputs, manifest and tables."""
        config = self.path / CONFIG
        try:
            values = yaml.safe_load(read_text(config)) if config.is_file() else {}
        except (yaml.YAMLError, DataError):
            values = {}
        texts = set(_texts(values)) | set(_read_object(self.path / INPUTS)) | set(_texts(self.manifest))
        return texts | set(self._table_texts())

    def _table_texts(self) -> Iterator[str]:
        for files in self.tables.values():
            for name in FOLDER_COLUMNS:
                yield from distinct_values(files, name)
            for model in distinct_values(files, "model"):
                try:
                    yield from _texts(json.loads(model))
                except ValueError:
                    continue

    def parents(self, folders: Mapping[Path, "RunFolder"] | None = None) -> set[Path]:
        """The run folders that this one names; of `folders` alone, even if they are gone, where they are given."""
        bases = [Path.cwd(), *([self.path, *self.path.parents][:8])]
        parents: set[Path] = set()
        for text in self.texts:
            for part in (piece.split("@")[0].strip() for piece in text.split(",")):
                if not part or len(part) > LONGEST_PATH or "\n" in part or HASH.fullmatch(part):
                    continue
                for base in bases:
                    path = Path(os.path.normpath(base / part))
                    parent = run_folder_of(path) if folders is None else _folder_above(path, folders)
                    if parent is not None and parent != self.path and parent not in self.path.parents:
                        parents.add(parent)
                        break
        return parents

    def terms(self) -> DataTerms:
        """Licenses and consents that the folder itself holds: in its tables and in its manifest."""
        parts = [terms_of_manifest(self.manifest, self.path.name)]
        for files in self.tables.values():
            for file in files:
                parts.append(_terms_of_table(file, self.path.name))
        return merge_terms(parts)


def _terms_of_table(file: Path, origin: str) -> DataTerms:
    """The licenses of the rows of a table by their sources, and their consents."""
    names = [name for name in ("license", "source", "consent", "error") if name in _columns(file)]
    if "license" not in names:
        return DataTerms()
    table = pq.read_table(file, columns=names, partitioning=None)
    if "error" in names:  # a song that could not be prepared is in no data
        table = table.filter(pc.equal(table["error"], ""))
    rows = table.group_by([name for name in names if name != "error"]).aggregate([]).to_pylist()
    licenses: dict[str, tuple[str, ...]] = {}
    for row in rows:
        key = row.get("source") or origin
        licenses[key] = tuple(sorted({*licenses.get(key, ()), row["license"] or "unknown"}))
    consents = sorted({row["consent"] for row in rows if row.get("consent")})
    return DataTerms(licenses, tuple(consents))


def _columns(file: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError):
        return []
    return names


def distinct_values(files: Iterable[Path], column: str) -> set[str]:
    """The texts in a column of a table's files; none for a table without the column."""
    values: set[str] = set()
    for file in files:
        if column in _columns(file):
            table = pq.read_table(file, columns=[column], partitioning=None)
            values |= {value for value in pc.unique(table[column]).to_pylist() if isinstance(value, str)}
    return values


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} for a file that is missing or holds none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> Iterator[str]:
    """All texts in a tree of mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def is_run_folder(path: Path) -> bool:
    """Whether a stage wrote a folder."""
    return (
        (path / CONFIG).is_file()
        or (path / MANIFEST).is_file()
        or (path.is_dir() and any(path.glob("*.parquet")))
    )


def run_folder_of(path: Path) -> Path | None:
    """The run folder that a path is, or lies in: of an adapter in a checkpoint, that of its training."""
    if not path.exists() or path in (Path.cwd(), *Path.cwd().parents):
        return None
    chain = [path, *path.parents][:6]
    for place in chain:
        if place in (Path.cwd(), *Path.cwd().parents):
            break
        if (place / CONFIG).is_file():
            return place
    return next((place for place in chain[:2] if is_run_folder(place)), None)


def _folder_above(path: Path, folders: Mapping[Path, RunFolder]) -> Path | None:
    """Of some folders the one that a path is, or lies in."""
    return next((place for place in (path, *path.parents) if place in folders), None)


def find_runs(roots: Sequence[Path]) -> dict[Path, RunFolder]:
    """All run folders in some folders, by their absolute paths."""
    runs: dict[Path, RunFolder] = {}
    for root in roots:
        for name, folders, _ in os.walk(root.resolve()):
            path = Path(name)
            folders[:] = sorted(
                folder
                for folder in folders
                if folder not in CONTENT_FOLDERS and not folder.startswith(".") and folder[-8:] != ".parquet"
            )
            if is_run_folder(path):
                runs[path] = RunFolder(path)
    return runs


def ancestors(folder: Path) -> list[Path]:
    """The folder and all run folders that it was made from, directly or through others."""
    order: dict[Path, None] = {folder.resolve(): None}
    for place in (queue := [folder.resolve()]):
        for parent in sorted(RunFolder(place).parents()):
            if parent.resolve() not in order:
                order[parent.resolve()] = None
                queue.append(parent.resolve())
    return list(order)


def data_terms(paths: Iterable[str | Path]) -> DataTerms:
    """Licenses and consents of everything that some folders, or files in them, were made from."""
    folders = [run_folder_of(Path(os.path.normpath(Path.cwd() / path))) for path in paths if str(path)]
    places = dict.fromkeys(place for folder in folders if folder is not None for place in ancestors(folder))
    return merge_terms(RunFolder(place).terms() for place in places)
