"""The matrix of published models, weights, launchers and splitting: each trajectory is that of one process."""

import json

import pytest
from support.launch import rows, train_many
from support.model_matrix import SPLIT, WEIGHTS, same_steps, train, words

NAMES = ("ace_step", "stable_audio_3", "stable_audio_open")
LAYOUTS = {"stacked": (), "split": (SPLIT,)}
STAGES = {"two": 0, "zero2": 2, "zero3": 3}
TOLERANCES = {"two": 1e-5, "zero2": 1e-4, "zero3": 1e-4}
REFUSAL = "train.base=int8: DeepSpeed cannot hold such weights"
RUNS = [(name, weights, layout) for name in NAMES for weights in WEIGHTS for layout in LAYOUTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def expected(folder, published_models, pairs):
    """Trajectories of one process, by model and weights."""
    return {
        (name, weights): train(folder / "one" / f"{name}-{weights}", pairs, published_models[name], weights)
        for name in NAMES
        for weights in WEIGHTS
    }


@pytest.fixture(scope="module")
def errors(folder, published_models, pairs):
    """The error of every launched run, a launch for each launcher."""
    return {
        (launcher, *run): error
        for launcher in STAGES
        for run, error in zip(
            RUNS,
            train_many(
                folder,
                launcher,
                [
                    words(
                        folder / launcher / "-".join(run), pairs, published_models[run[0]], run[1],
                        "train.per_device=1", *LAYOUTS[run[2]],
                    )
                    for run in RUNS
                ],
            ),
            strict=True,
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    ("launcher", "name", "weights", "layout"), [(launcher, *run) for launcher in STAGES for run in RUNS]
)
def test_two_processes_follow_one(folder, expected, errors, launcher, name, weights, layout):
    error = errors[launcher, name, weights, layout]
    if weights == "int8" and STAGES[launcher]:
        assert REFUSAL in error
        return
    assert error == ""
    out = folder / launcher / f"{name}-{weights}-{layout}"
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["world"], manifest["zero_stage"]) == (2, STAGES[launcher])
    same_steps(expected[name, weights], rows(out), TOLERANCES[launcher])
