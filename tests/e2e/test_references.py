"""References that move, and errors that are cached: less far away, and the same after an interruption."""

import pytest
from support.launch import rows, verb

pytestmark = pytest.mark.slow

WORDS = (
    "objective.name=dpo", "objective.args.beta=200", "train.lora.rank=4", "train.steps=4", "train.global_batch=8",
    "train.per_device=8", "train.learning_rate=1e-2", "train.save_every=2", "train.dropout.style=0.3",
    "train.trackers=[]", "seed=1",
)  # fmt: skip
MOVING = ("train.reference.kind=ema", "train.reference.decay=0.5")
CACHED = ("train.reference.cached_draws=2", "train.steps=6", "train.save_every=3")


def train(out, bundle, pairs, *words):
    verb(
        "train",
        f"out={out}",
        f"data.pairs={pairs}",
        "model.name=tiny",
        f"model.args.bundle={bundle}",
        *WORDS,
        *words,
    )
    return rows(out)


@pytest.fixture(scope="module")
def moving(tmp_path_factory, bundle, pairs):
    return train(tmp_path_factory.mktemp("ema") / "run", bundle, pairs, *MOVING)


def test_the_policy_stays_nearer_to_a_reference_that_moves(tmp_path, bundle, pairs, moving):
    fixed = train(tmp_path / "run", bundle, pairs)
    assert moving[0] == fixed[0]
    assert (
        moving[1]["winner_error"] == fixed[1]["winner_error"]
    )  # the policy after a first step with the same loss
    assert 0 < abs(moving[1]["margin"]) < abs(fixed[1]["margin"])


def test_a_reference_that_moves_is_resumed_bit_for_bit(tmp_path, bundle, pairs, moving):
    train(tmp_path / "run", bundle, pairs, *MOVING, "train.steps=2")
    assert train(tmp_path / "run", bundle, pairs, *MOVING) == moving


def test_cached_errors_survive_an_interruption(tmp_path, bundle, pairs):
    """Twelve pairs, eight a step: in the fourth step some come for the third time, with draws met before."""
    whole = train(tmp_path / "whole", bundle, pairs, *CACHED)
    train(tmp_path / "parts", bundle, pairs, *CACHED, "train.steps=3")
    assert train(tmp_path / "parts", bundle, pairs, *CACHED) == whole
    assert whole[0]["margin"] == 0.0
    assert all(row["loss"] > 0 for row in whole)
