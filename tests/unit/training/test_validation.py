"""Validation inside a training: exact numbers, an undisturbed trajectory, songs, the best step, early stop."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from support.launch import rows, verb

PROMPTS = [
    {"id": "a", "text": "slow rock", "duration_s": 1.0, "group": "va"},
    {"id": "b", "text": "fast metal", "duration_s": 1.5, "group": "vb"},
]
SONGS = (
    "train.validation.sampling.steps=2", "train.validation.sampling.guidance_scale=1",
    "train.validation.scorers=[production]",
)  # fmt: skip
HELD_OUT = ("train.validation.fraction=0.3", "train.validation.every=2")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "validation.jsonl"
    path.write_text("\n".join(json.dumps(prompt) for prompt in PROMPTS))
    return path


def train(out, bundle, pairs, *more, steps=4, lora=True, code=0):
    adapter = ["train.lora.rank=2"] if lora else []
    return verb(
        "train", f"out={out}", f"data.pairs={pairs}", "model.name=tiny", f"model.args.bundle={bundle}",
        "objective.args.beta=50", "train.global_batch=2", "train.per_device=2", "train.learning_rate=1e-3",
        "train.trackers=[]", "train.time_bins=0", "train.save_every=2", "train.keep_checkpoints=1",
        f"train.steps={steps}", *adapter, *more, code=code,
    )  # fmt: skip


def split(out):
    """The rows of steps and those of validations, without seconds."""
    table = rows(Path(out))
    steps = [row for row in table if "loss" in row]
    validations = [
        {k: v for k, v in row.items() if k != "validation/seconds"} for row in table if "loss" not in row
    ]
    return steps, validations


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bundle, pairs, prompts):
    """A run with everything."""
    out = tmp_path_factory.mktemp("validated") / "run"
    train(out, bundle, pairs, *HELD_OUT, f"train.validation.prompts={prompts}", *SONGS, "train.validation.keep=best")
    return out


def test_metrics_come_before_the_first_step_and_after_every_second(whole):
    steps, validations = split(whole)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["step"] for row in validations] == [0, 2, 4]
    start = validations[0]
    assert start["validation/loss"] == pytest.approx(math.log(2), rel=1e-6)  # margin 0: an untrained adapter
    assert start["validation/winner_error_ratio"] == 1.0
    assert start["validation/margin"] == 0.0
    gains = [key for key in start if key.startswith("validation/gain/production.")]
    assert gains
    assert all(start[key] == 0.0 for key in gains)
    last = validations[-1]
    assert last["validation/winner_error_ratio"] != 1.0
    assert last["validation/winner_error"] == pytest.approx(
        last["validation/winner_error_ratio"] * (last["validation/winner_error"] + last["validation/winner_gain"])
    )
