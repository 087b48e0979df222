"""Songs divided over processes: velocities, gradients and whole trainings are those of one process."""

import json

import pytest
from support.frame_division import compare_all
from support.launch import rows, train_many, verb

pytestmark = pytest.mark.slow

WORDS = (
    "objective.name=dpo", "objective.args.beta=20", "objective.args.anchor.winner=1.0", "train.steps=3",
    "train.global_batch=4", "train.learning_rate=1e-4", "train.save_every=3", "train.dropout.style=0.3",
    "train.trackers=[]", "seed=1",
)  # fmt: skip
RUNS = {
    "full": ("train.per_device=4", "train.gradient_checkpointing=true"),
    "lora": (
        "train.lora.rank=4", "train.per_device=2", "train.split_backward=true", "train.reference.cached_draws=1",
        "train.steps=5",
    ),
}  # fmt: skip
"""The songs of all pairs are of different lengths, some of them odd; behind the third step the twelve pairs recur,
and the reference's errors with them."""


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """By process, the differences of each case."""
    return compare_all(tmp_path_factory.mktemp("division"), 3)


def test_divided_songs_have_the_velocities_and_gradients_of_whole_songs(differences):
    assert [len(cases) for cases in differences] == [34, 34, 17]
    for cases in differences:
        for name, errors in cases.items():
            # diffusers' normalisations compute in single precision whatever the network's
            assert max(errors) < (1e-5 if name.startswith(("ace_step", "stable_audio")) else 1e-10), name


def words(out, bundle, pairs, *more):
    return [f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", *WORDS, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("context")


@pytest.fixture(scope="module")
def launched(folder, bundle, pairs):
    """The errors of all runs on two processes that share each song."""
    commands = [
        words(folder / "two" / name, bundle, pairs, *more, "train.context_parallel=2")
        for name, more in RUNS.items()
    ]
    return dict(zip(RUNS, train_many(folder, "two", commands, "train_divided.py"), strict=True))


def test_each_process_computes_half_of_the_longest_song(folder, launched):
    for rank in range(2):
        assert json.loads((folder / f"two.widths.{rank}.json").read_text()) == [9, 9]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_that_share_each_song_train_as_one(folder, bundle, pairs, launched, name):
    assert launched[name] == ""
    manifest = json.loads((folder / "two" / name / "manifest.json").read_text())
    assert (manifest["world"], manifest["distributed"]) == (2, "MULTI_CPU")
    out = folder / "one" / name
    verb("train", *words(out, bundle, pairs, *RUNS[name]))
    expected, divided = rows(out), rows(folder / "two" / name)
    assert len(expected) == len(divided) > 2
    for row, row_of_two in zip(expected, divided, strict=True):
        assert row.keys() == row_of_two.keys()
        for key in ("loss", "grad_norm", "winner_error", "loser_error"):
            assert row_of_two[key] == pytest.approx(row[key], rel=1e-5), f"{key} at step {row['step']}"
