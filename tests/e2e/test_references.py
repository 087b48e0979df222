"""References that move, and errors that are remembered: the same in every layout, and after an interruption."""

import json

import pytest
from support.launch import rows, run, same_trajectory

pytestmark = pytest.mark.slow

WORDS = (
    "objective.name=dpo", "objective.args.beta=200", "train.lora.rank=4", "train.steps=4", "train.global_batch=8",
    "train.per_device=8", "train.learning_rate=1e-2", "train.save_every=2", "train.dropout.style=0.3",
    "train.trackers=[]", "seed=1",
)  # fmt: skip
EMA = ("train.reference.kind=ema", "train.reference.decay=0.5")
CACHED = ("train.reference.cached_draws=2", "train.steps=6", "train.save_every=3")


def train(out, bundle, pairs, *words, **launch):
    model = ("model.name=tiny", f"model.args.bundle={bundle}")
    done = run("train", f"out={out}", f"data.pairs={pairs}", *model, *WORDS, *words, **launch)
    return done.stderr if launch.get("fails") else rows(out)


@pytest.fixture(scope="module")
def followed(tmp_path_factory, bundle, pairs):
    return train(tmp_path_factory.mktemp("ema") / "run", bundle, pairs, *EMA)


def test_a_reference_that_follows_is_left_behind_less(tmp_path, bundle, pairs, followed):
    fixed = train(tmp_path / "run", bundle, pairs)
    assert followed[0] == fixed[0]
    assert (
        followed[1]["winner_error"] == fixed[1]["winner_error"]
    )  # the policy after a first step with the same loss
    assert 0 < abs(followed[1]["margin"]) < abs(fixed[1]["margin"])


@pytest.mark.parametrize("launcher", ["two", "zero2"])
def test_a_reference_that_follows_is_the_same_on_two_processes(tmp_path, bundle, pairs, followed, launcher):
    seen = train(tmp_path / "run", bundle, pairs, *EMA, "train.per_device=4", launcher=launcher)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["world"] == 2
    same_trajectory(followed, seen)


def test_a_reference_that_follows_is_resumed_bit_for_bit(tmp_path, bundle, pairs, followed):
    train(tmp_path / "run", bundle, pairs, *EMA, "train.steps=2")
    assert train(tmp_path / "run", bundle, pairs, *EMA) == followed


def test_sharded_weights_cannot_be_followed(tmp_path, bundle, pairs):
    said = train(tmp_path / "run", bundle, pairs, *EMA, "train.per_device=4", launcher="zero3", fails=True)
    assert "train.reference.kind=ema: ZeRO-3 shards the weights it would follow" in said


def test_remembered_errors_survive_an_interruption(tmp_path, bundle, pairs):
    """Twelve pairs, eight a step: in the fourth step some come for the third time, with draws met before."""
    whole = train(tmp_path / "whole", bundle, pairs, *CACHED)
    train(tmp_path / "parts", bundle, pairs, *CACHED, "train.steps=3")
    assert train(tmp_path / "parts", bundle, pairs, *CACHED) == whole
    assert whole[0]["margin"] == 0.0
    assert all(row["loss"] > 0 for row in whole)
