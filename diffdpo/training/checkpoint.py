"""Checkpoints: complete or absent, newest wins, the last few are kept."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffdpo.errors import CheckpointError
from diffdpo.runs import MANIFEST, publish, read_json

STEP = "step-*"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; leftovers of a killed save are never candidates."""
    complete = [path for path in folder.glob(STEP) if (path / MANIFEST).is_file()]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    fingerprint: dict[str, Any],
    objective_state: Mapping[str, float],
    extra: Callable[[Path], None],
    keep: int,
) -> Path:
    """Publish the state after `step`; then delete all checkpoints but the newest `keep`."""

    def write(folder: Path) -> None:
        accelerator.save_state(str(folder / "state"))
        extra(folder)

    final = publish(
        folder / f"step-{step:08d}",
        write,
        {"step": step, "running": dict(objective_state), **fingerprint},
        is_main=accelerator.is_main_process,
        barrier=accelerator.wait_for_everyone,
    )
    if accelerator.is_main_process:
        for old in sorted(path for path in folder.glob(STEP) if (path / MANIFEST).is_file())[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, fingerprint: dict[str, Any]
) -> tuple[int, Mapping[str, float]]:
    """Restore a checkpoint into objects prepared by accelerate; its step, and the objective's state then.

    CheckpointError for a checkpoint of another run.
    """
    manifest = read_json(checkpoint / MANIFEST)
    for name, value in fingerprint.items():
        if manifest.get(name) != value:
            raise CheckpointError(
                f"{checkpoint}: written with {name}={manifest.get(name)!r}, this run has {value!r}; "
                "use another out directory, or delete the checkpoint to start over"
            )
    accelerator.load_state(str(checkpoint / "state"))
    return int(manifest["step"]), manifest.get("running", {})
