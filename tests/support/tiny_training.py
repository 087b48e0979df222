"""Trainings of the tiny model on pairs: the words of a command, and its metrics."""

from pathlib import Path

from support.launch import rows, verb

WORDS = (
    "objective.name=dpo", "objective.args.beta=200", "objective.args.anchor.winner=1.0", "train.steps=4",
    "train.global_batch=8", "train.per_device=8", "train.learning_rate=1e-3", "train.save_every=2",
    "train.dropout.style=0.3", "train.trackers=[]", "seed=1",
)  # fmt: skip
LORA = ("train.lora.rank=4",)
FULL = ("train.learning_rate=1e-4",)
SPLIT = ("train.split_backward=true",)
MOVING = ("train.reference.kind=ema", "train.reference.decay=0.5")


def words(out: Path, bundle: Path, pairs: Path, *more: str) -> list[str]:
    """The words of `diffdpo train`; later ones win."""
    model = ("model.name=tiny", f"model.args.bundle={bundle}")
    return [f"out={out}", f"data.pairs={pairs}", *model, *WORDS, *more]


def train(out: Path, bundle: Path, pairs: Path, *more: str) -> list[dict[str, float]]:
    """The metrics of a training in this process."""
    verb("train", *words(out, bundle, pairs, *more))
    return rows(out)
