"""How a step is computed changes no trajectory: compiled, recomputed, split, with another kind of reference."""

import pytest
from support.launch import rows, same_trajectory, verb

WORDS = (
    "objective.name=dpo", "objective.args.beta=200", "train.steps=4", "train.global_batch=8", "train.per_device=8",
    "train.learning_rate=1e-3", "train.dropout.style=0.3", "train.trackers=[]", "train.lora.rank=4", "seed=1",
    "model.name=tiny",
)  # fmt: skip
LAYOUTS = {
    "compile": ("train.compile=true",),
    "checkpointing": ("train.gradient_checkpointing=true",),
    "checkpointing-compile": ("train.gradient_checkpointing=true", "train.compile=true"),
    "micro-batches": ("train.per_device=1",),
    "frozen-copy": ("train.reference.kind=frozen_copy",),
}


def train(out, bundle, pairs, *more):
    verb("train", f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", *WORDS, *more)
    return rows(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, bundle, pairs):
    return train(tmp_path_factory.mktemp("layouts") / "plain", bundle, pairs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_trajectory_is_the_plain_one(tmp_path, bundle, pairs, plain, name):
    same_trajectory(plain, train(tmp_path / name, bundle, pairs, *LAYOUTS[name]))
