"""One optimiser step in several layouts: processes × songs per device · accumulation, eight examples in all."""

import json
from pathlib import Path

import pytest

from support.launch import rows

WORDS = (
    "model.name=tiny", "objective.name=dpo", "objective.args.beta=20", "train.steps=3", "train.global_batch=8",
    "train.learning_rate=1e-4", "train.dropout.style=0.3", "train.trackers=[]", "train.save_every=3", "seed=1",
)  # fmt: skip
WEIGHTS = {"full": (), "lora": ("train.lora.rank=4", "train.learning_rate=1e-3")}
LAYOUTS = {"1x8": (1, 8), "1x2.4": (1, 2), "2x4": (2, 4), "2x2.2": (2, 2)}
"""Processes, and songs per device; accumulation follows."""
EXTRAS = {"": (), "budget": ("train.frames_per_device=20",)}
"""Words by name that may not move the trajectory either, each tried in every layout. A pair has 28 frames and more:
the budget splits all."""
BACKENDS = {
    "two": ("MULTI_CPU", 0), "zero1": ("DEEPSPEED", 1), "zero2": ("DEEPSPEED", 2), "zero3": ("DEEPSPEED", 3),
    "fsdp2": ("FSDP2", 0),
}  # fmt: skip
"""What the manifest of a run says: the kind, and the stage of ZeRO."""
TOLERANCE = 1e-5


def layout_words(
    out: Path, bundle: Path, pairs: Path, layout: str, *, weights: str = "full", extra: str = ""
) -> list[str]:
    """The words of a training in a layout."""
    words = [f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", *WORDS, *WEIGHTS[weights]]
    return [*words, f"train.per_device={LAYOUTS[layout][1]}", *EXTRAS[extra]]


def check_backend(out: Path, launcher: str) -> None:
    """The run was one of two processes, under the backend that was launched."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["world"], manifest["distributed"], manifest["zero_stage"]) == (2, *BACKENDS[launcher])


def same_numbers(expected: list[dict[str, float]], out: Path, tolerance: float = TOLERANCE) -> None:
    """Losses and gradient norms of three steps are the same to a tolerance of themselves, and they move."""
    actual = rows(out)
    assert [row["step"] for row in actual] == [row["step"] for row in expected] == [1, 2, 3]
    for row, other in zip(expected, actual, strict=True):
        for key in ("loss", "grad_norm"):
            assert other[key] == pytest.approx(row[key], rel=tolerance), f"{key} at step {row['step']}"
    assert expected[0]["loss"] != expected[-1]["loss"]
