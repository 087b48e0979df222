"""Small random ACE-Step and Stable Audio under every way to train: which weights, and how a step is computed."""

from pathlib import Path

import pytest

from support.ace_step import write_original
from support.launch import rows, verb
from support.stable_audio3 import write_published
from support.stable_audio_open import write_open

TRAIN = (
    "objective.name=dpo", "objective.args.beta=20", "train.steps=3", "train.global_batch=2", "train.per_device=2",
    "train.learning_rate=1e-3", "train.dropout.prompt=0.3", "train.trackers=[]", "train.save_every=3", "seed=1",
)  # fmt: skip
WEIGHTS = {
    "lora": ("train.lora.rank=4",),
    "dora": ("train.lora.rank=4", "train.lora.peft.use_dora=true"),
    "int8": ("train.lora.rank=4", "train.base=int8"),
    "full": ("train.learning_rate=1e-4",),
}
SPLIT = "train.split_backward=true"


def write_models(folder: Path) -> dict[str, tuple[str, ...]]:
    """The words of each model, all of eight channels as the songs of `support.songs` are."""
    write_original(folder / "ace_step")
    write_published(folder / "stable_audio_3")
    write_open(folder / "stable_audio_open")
    checkpoints = {
        "ace_step": folder / "ace_step" / "acestep-v15-base",
        "stable_audio_3": folder / "stable_audio_3",
        "stable_audio_open": folder / "stable_audio_open",
    }
    return {
        name: (
            f"model.name={name}",
            f"model.args.checkpoint={path}",
            *(() if name == "ace_step" else ("model.args.audio=false",)),
        )
        for name, path in checkpoints.items()
    }


def words(out: Path, pairs: Path, model: tuple[str, ...], weights: str, *more: str) -> list[str]:
    """The words of a training; the embeddings of a model are cached for all of them."""
    cache = f"embedding_cache={out.parent.parent / 'cache'}"
    return [f"out={out}", f"data.pairs={pairs}", cache, *model, *TRAIN, *WEIGHTS[weights], *more]


def train(*args: object, **changes: object) -> list[dict[str, float]]:
    """The metrics of a training in this process; arguments are those of `words`."""
    line = words(*args, **changes)
    verb("train", *line)
    return rows(Path(line[0].removeprefix("out=")))


def same_steps(expected: list[dict[str, float]], actual: list[dict[str, float]], tolerance: float) -> None:
    """Losses, errors and gradient norms agree to a tolerance of themselves, all else to ten times as much."""
    assert len(expected) == len(actual) == 3
    for row, other in zip(expected, actual, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            own = {"rel": tolerance} if key in ("loss", "grad_norm", "winner_error", "loser_error") else {}
            bounds = own or {"rel": 10 * tolerance, "abs": 10 * tolerance}
            assert other[key] == pytest.approx(value, **bounds), f"{key} at step {row['step']}"
