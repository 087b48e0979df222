"""Compiled blocks: steps under every backend, in launches of two processes, and songs, are the uncompiled ones."""

import json

import pytest
import torch
from support.launch import rows, train_many

from diffdpo import api
from diffdpo.models import MODELS
from diffdpo.types import Prompt

WORDS = (
    "model.name=tiny", "objective.name=dpo", "objective.args.beta=5", "train.steps=3", "train.global_batch=4",
    "train.per_device=2", "train.learning_rate=1e-4", "train.dropout.style=0.3", "train.trackers=[]", "seed=1",
)  # fmt: skip
STAGES = {"two": 0, "zero2": 2, "zero3": 3}
WEIGHTS = {"full": (), "lora": ("train.lora.rank=4",)}
LAYOUTS = {
    "plain": (),
    "compile": ("train.compile=true",),
    "compile-checkpointing": ("train.compile=true", "train.gradient_checkpointing=true"),
    "compile-split": ("train.compile=true", "train.split_backward=true"),
}
RUNS = [(weights, layout) for weights in WEIGHTS for layout in LAYOUTS]


@pytest.fixture(scope="module", params=STAGES)
def launch(request, tmp_path_factory, bundle, pairs):
    """A backend, the folder of its runs, and their errors."""
    folder = tmp_path_factory.mktemp(request.param)
    commands = [
        [f"out={folder / '-'.join(run)}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", *WORDS,
         *WEIGHTS[run[0]], *LAYOUTS[run[1]]]
        for run in RUNS
    ]  # fmt: skip
    return request.param, folder, dict(zip(RUNS, train_many(folder, request.param, commands), strict=True))


@pytest.mark.parametrize(("weights", "layout"), [run for run in RUNS if run[1] != "plain"])
def test_compiled_steps_are_the_uncompiled_ones(launch, weights, layout):
    launcher, folder, errors = launch
    assert {errors[weights, "plain"], errors[weights, layout]} == {""}
    plain, own = (folder / f"{weights}-{name}" for name in ("plain", layout))
    manifest = json.loads((own / "manifest.json").read_text())
    assert (manifest["world"], manifest["zero_stage"]) == (2, STAGES[launcher])
    assert len(rows(plain)) == len(rows(own)) == 3
    for row, other in zip(rows(plain), rows(own), strict=True):
        for key in ("loss", "grad_norm", "winner_error", "loser_error"):
            assert other[key] == pytest.approx(row[key], rel=1e-5), f"{key} at step {row['step']}"


def test_compiled_blocks_give_the_same_songs(bundle):
    prompts = [Prompt(id=f"p{k}", text="rock", duration_s=float(k)) for k in (1, 2)]
    plain, own = (
        api.sample(MODELS["tiny"](bundle=str(bundle)).load(), prompts, steps=3, compile=is_compiled)
        for is_compiled in (False, True)
    )
    for one, other in zip(plain, own, strict=True):
        assert torch.allclose(one.latents, other.latents, atol=1e-5)
