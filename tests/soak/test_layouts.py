"""How a step is computed changes no trajectory: compiled, recomputed, split, with another kind of
reference; in every layout under every backend."""

import pytest
from support.launch import rows, same_trajectory, train_many, verb
from support.layouts import BACKENDS, EXTRAS, WEIGHTS, check_backend, layout_words, same_numbers

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


BACKEND_LAYOUTS = [(launcher, layout) for launcher in BACKENDS for layout in ("2x4", "2x2.2")]
SHARED_RUNS = [
    (launcher, layout, weights, extra)
    for launcher, layout in BACKEND_LAYOUTS
    for weights in WEIGHTS
    for extra in EXTRAS
]
"""Every backend in every layout of two processes, all weights and LoRA."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory, bundle, pairs):
    """A folder of all runs, those of one backend in one launch."""
    folder = tmp_path_factory.mktemp("shared")
    for launcher in BACKENDS:
        lines = [
            layout_words(folder / "-".join(run), bundle, pairs, run[1], weights=run[2], extra=run[3])
            for run in SHARED_RUNS
            if run[0] == launcher
        ]
        assert set(train_many(folder, launcher, lines)) == {""}
    for weights in WEIGHTS:
        verb("train", *layout_words(folder / f"alone-{weights}", bundle, pairs, "1x8", weights=weights))
    return folder


@pytest.mark.parametrize("run", SHARED_RUNS, ids="-".join)
def test_every_backend_in_every_layout_makes_the_steps_of_one_process(shared, run):
    out = shared / "-".join(run)
    check_backend(out, run[0])
    same_numbers(rows(shared / f"alone-{run[2]}"), out)


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_accumulation_on_one_process_makes_the_same_steps(shared, bundle, pairs, weights, extra):
    out = shared / f"accumulated-{weights}-{extra}"
    verb("train", *layout_words(out, bundle, pairs, "1x2.4", weights=weights, extra=extra))
    same_numbers(rows(shared / f"alone-{weights}"), out)
