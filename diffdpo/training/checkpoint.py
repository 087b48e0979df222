"""Checkpoints: complete or absent, newest wins, the last few are kept.

A manifest, written last, holds the sizes of all files: what was cut since is noticed before anything is loaded.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffdpo.disk import disk_errors
from diffdpo.errors import CheckpointError, DataError, reason
from diffdpo.runs import MANIFEST, publish, read_json
from diffdpo.training.layout import Layout, check_layout, layout_of
from diffdpo.weight_files import read_tensors, unpickle

STATE = "state"
"""Folder of a checkpoint with all that training continues from."""
SIZES = "sizes"
"""Key of the manifest with the size in bytes of every file of the checkpoint."""


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first.

    Only folders named exactly step-NNNNNNNN are checkpoints: copies under other names belong to the user, and
    leftovers of a killed save are never candidates.
    """
    names = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
    steps = {int(match[1]): path for path in folder.glob("step-*") if (match := names.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps) if (steps[step] / MANIFEST).is_file()]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return next(reversed(list_checkpoints(folder)), None)


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    fingerprint: dict[str, Any],
    state: Mapping[str, Any],
    extra: Callable[[Path], None],
    keep: int,
) -> Path:
    """Publish the state after `step`; then delete all checkpoints but the newest `keep`.

    `state` are the loop's own values, which go into the manifest.
    """
    layout = vars(layout_of(accelerator))
    manifest: dict[str, Any] = {"step": step, **state, **layout, **fingerprint}
    if accelerator.is_main_process:
        for partial in folder.glob(".step-*.partial"):  # of a save that was killed
            shutil.rmtree(partial, ignore_errors=True)

    def write(folder: Path) -> None:
        with disk_errors(folder):
            accelerator.save_state(str(folder / STATE))
        extra(folder)
        accelerator.wait_for_everyone()
        manifest[SIZES] = file_sizes(folder)

    final = publish(
        folder / f"step-{step:08d}",
        write,
        manifest,
        is_main=accelerator.is_main_process,
        barrier=accelerator.wait_for_everyone,
    )
    if accelerator.is_main_process:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def file_sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file in a folder, by its path in the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, fingerprint: dict[str, Any]
) -> dict[str, Any]:
    """Restore a checkpoint into objects prepared by accelerate; its manifest, with step and state of the loop.

    CheckpointError for a checkpoint that is damaged, of another run, or of processes that this run does not have.
    """
    manifest = check_checkpoint(checkpoint, layout_of(accelerator))
    for name, value in fingerprint.items():
        if manifest.get(name) != value:
            raise CheckpointError(
                f"{checkpoint}: written with {name}={manifest.get(name)!r}, this run has {value!r}; "
                "use another out directory, or delete the checkpoint to start over"
            )
    for path in sorted((checkpoint / STATE).glob("*")):
        _check_content(checkpoint, path)
    try:
        accelerator.load_state(str(checkpoint / STATE))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever accelerate, torch and DeepSpeed raise for a file that does not fit
        text = f"{type(error).__name__}: {reason(error)}"
        raise damage(checkpoint, checkpoint / STATE, f"cannot be loaded: {text}") from error
    return manifest


def check_latest(folder: Path, accelerator: Accelerator) -> None:
    """CheckpointError if a run cannot continue from its newest checkpoint; for use before a model is loaded."""
    if newest := latest_checkpoint(folder):
        check_checkpoint(newest, layout_of(accelerator))


def check_checkpoint(checkpoint: Path, layout: Layout) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all whole and that these processes can load.

    CheckpointError otherwise. No file but the manifest is opened.
    """
    manifest = read_manifest(checkpoint)
    check_layout(checkpoint, manifest, layout)
    for name, size in manifest.get(SIZES, {}).items():
        path = checkpoint / name
        if not path.is_file():
            raise damage(checkpoint, path, "no such file")
        if path.stat().st_size != size:
            raise damage(checkpoint, path, f"{path.stat().st_size} bytes instead of {size}")
    return manifest


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; CheckpointError if it is damaged."""
    path = checkpoint / MANIFEST
    try:
        manifest = read_json(path)
    except DataError as error:
        raise damage(checkpoint, path, str(error).removeprefix(f"{path}: ")) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("step"), int):
        raise damage(checkpoint, path, "no manifest of a checkpoint")
    return manifest


def _check_content(checkpoint: Path, path: Path) -> None:
    """CheckpointError for a file of the state that its library cannot open, without reading what is in it.

    Pickles are opened as data: one that would run code is refused here, before accelerate opens it. DeepSpeed's
    files, which lie in a folder, hold objects and are left to DeepSpeed.
    """
    try:
        if path.suffix == ".safetensors":
            read_tensors(path)
        elif path.suffix in (".bin", ".pkl", ".pt"):
            unpickle(path)
    except CheckpointError as error:
        raise damage(checkpoint, path, str(error).removeprefix(f"{path}: ")) from None


def damage(checkpoint: Path, path: Path, text: str) -> CheckpointError:
    """The error for a damaged file of a checkpoint, with the way out: the newest older checkpoint that is whole."""
    checkpoints = list_checkpoints(checkpoint.parent)
    earlier = checkpoints[: checkpoints.index(checkpoint)] if checkpoint in checkpoints else []
    older = [folder for folder in earlier if is_whole(folder)]
    remedy = f"go on from {older[-1].name}" if older else "start over"
    return CheckpointError(f"{path}: damaged ({text}); delete the folder {checkpoint} to {remedy}")


def is_whole(checkpoint: Path) -> bool:
    """Whether the manifest of a checkpoint can be read, and all its files have their sizes."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
        return file_sizes(checkpoint).items() >= manifest.get(SIZES, {}).items()
    except (DataError, AttributeError, OSError):
        return False
