"""The weights of the best step, beside the checkpoints: `best-00000020`, and the link `best` to the newest of them.

A better step does not delete the one before at once: a killed run goes on from a checkpoint that may still call the
older one the best. It goes when no checkpoint does.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffdpo.runs import publish
from diffdpo.training.checkpoint import list_checkpoints, read_manifest

BEST = "best"
"""Name of the link to the best step's folder."""


def best_folder(checkpoints: Path, step: int) -> Path:
    """The folder of the weights of a step that was the best."""
    return checkpoints / f"{BEST}-{step:08d}"


def save_best(
    accelerator: Accelerator,
    checkpoints: Path,
    step: int,
    entries: Mapping[str, Any],
    extra: Callable[[Path], None],
) -> None:
    """Publish the weights that `extra` writes as those of the best step; `entries` go into the manifest."""
    final = publish(
        best_folder(checkpoints, step),
        extra,
        {"step": step, **entries},
        is_main=accelerator.is_main_process,
        barrier=accelerator.wait_for_everyone,
    )
    if accelerator.is_main_process:
        _link(checkpoints / BEST, final.name)
        prune_best(checkpoints, step)


def prune_best(checkpoints: Path, step: int) -> None:
    """Delete the weights of steps that neither this run nor any checkpoint calls the best. -1: there is none."""
    manifests = (read_manifest(checkpoint) for checkpoint in list_checkpoints(checkpoints))
    steps = {step, *(manifest.get("validation", {}).get("step", -1) for manifest in manifests)}
    for path in checkpoints.glob(f"{BEST}-*"):
        match = re.fullmatch(rf"{BEST}-(\d{{8,}})", path.name)
        if match and int(match[1]) not in steps:
            shutil.rmtree(path, ignore_errors=True)
    for partial in checkpoints.glob(f".{BEST}-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _link(link: Path, target: str) -> None:
    """Point a link at a sibling, in one step; nothing where the file system has no links."""
    partial = link.with_name(f".{link.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        partial.replace(link)
    except OSError:
        partial.unlink(missing_ok=True)
