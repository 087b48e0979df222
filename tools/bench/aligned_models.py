"""Models made from the songs of one finished round: other pairs, objectives and strengths, the same candidates.

A model is a run of `diffdpo round` in a folder of its own that begins with the candidates, the base's evaluation
songs and all scores of the source. So only mining, training and the aligned model's songs are new, and a run
that was stopped goes on.
"""

import os
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffdpo.config import build_config
from diffdpo.recipes import round as rounds
from diffdpo.recipes.round import RoundRun
from diffdpo.runs import CONFIG, atomic_write, is_finished
from diffdpo.text_files import read_text

SHARED_FOLDERS = ("baseline", "round-1/candidates", "scores")
"""What a model has in common with its source."""
CONTENT_FOLDERS = ("audio", "latents", "pictures")
"""Folders of files that are never written again, which are linked and not copied."""


@dataclass(frozen=True)
class AlignedModel:
    """A recipe: what differs from the source's configuration."""

    name: str
    method: str
    """The recipe in a few words."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted key. A mapping replaces the whole one that was there."""


def check_source(source: Path) -> None:
    """Ends the program unless the folder holds a finished run of `diffdpo round` or `demo`."""
    if not is_finished(source):
        raise SystemExit(f"error: {source}: not a finished run; make one with `diffdpo demo out={source}`")


def changed_config(source: Path, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a source with changes, for a run in `folder` without a long song."""
    config: dict[str, Any] = deepcopy(yaml.safe_load(read_text(source / CONFIG)))
    for key, value in {**changes, "out": str(folder.resolve()), "long_song_s": 0.0}.items():
        *parents, name = key.split(".")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = deepcopy(value)
    return config


def run_model(model: AlignedModel, source: Path, folder: Path) -> Path:
    """The folder of a model's finished run, made or continued from the songs of the source."""
    if is_finished(folder):
        return folder
    link_songs(source, folder)
    path = folder.with_name(f"{folder.name}.yaml")
    atomic_write(path, yaml.safe_dump(changed_config(source, folder, model.changes), sort_keys=False))
    return rounds.run(build_config(RoundRun, path, []))


def link_songs(source: Path, folder: Path) -> None:
    """Begin a run with the songs and scores of another. Configurations stay behind, since they name its folders."""
    for name in SHARED_FOLDERS:
        if (folder / name).exists():
            continue
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(
            source / name,
            partial,
            copy_function=_link_content,
            ignore=shutil.ignore_patterns(CONFIG, "index.html", ".lock*"),
        )
        partial.rename(folder / name)


def _link_content(source: str, target: str) -> None:
    """A hard link to a song's file where the file system has them, else a copy; a copy of tables."""
    if Path(source).parent.name in CONTENT_FOLDERS:
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)
