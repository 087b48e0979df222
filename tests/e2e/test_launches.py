"""ACE-Step and Stable Audio 3 on two processes, with and without ZeRO: the trajectory is that of one process.

`make soak` has every combination of models, weights and launchers (`tests/soak/test_matrix.py`).
"""

import json

import pytest
from support.launch import rows, train_many
from support.model_matrix import SPLIT, same_steps, train, words

pytestmark = pytest.mark.slow

LAUNCHES = {
    "two": {
        ("ace_step", "full"): (),
        ("ace_step", "dora"): (SPLIT,),
        ("stable_audio_3", "lora"): (),
        ("stable_audio_3", "int8"): (SPLIT,),
    },
    "zero3": {
        ("ace_step", "lora"): (SPLIT,),
        ("ace_step", "full"): (),
        ("stable_audio_3", "dora"): (),
        ("stable_audio_3", "full"): (SPLIT,),
    },
}
"""By launcher the runs of one launch, model and weights, and how their steps are computed."""
TOLERANCES = {"two": 1e-5, "zero3": 1e-4}
RUNS = [(launcher, *run) for launcher, runs in LAUNCHES.items() for run in runs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("launches")


@pytest.fixture(scope="module")
def launched(folder, published_models, pairs):
    """The errors of all runs, a launch for each launcher."""
    errors = {}
    for launcher, runs in LAUNCHES.items():
        lines = [
            words(
                folder / launcher / "-".join(run), pairs, published_models[run[0]], run[1], "train.per_device=1",
                *runs[run],
            )
            for run in runs
        ]  # fmt: skip
        errors |= {
            (launcher, *run): error
            for run, error in zip(runs, train_many(folder, launcher, lines), strict=True)
        }
    return errors


@pytest.mark.parametrize(("launcher", "name", "weights"), RUNS)
def test_two_processes_follow_the_trajectory_of_one(
    folder, published_models, pairs, launched, launcher, name, weights
):
    assert launched[launcher, name, weights] == ""
    out = folder / launcher / f"{name}-{weights}"
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["world"], manifest["zero_stage"]) == (2, {"two": 0, "zero3": 3}[launcher])
    expected = train(folder / "one" / f"{launcher}-{name}-{weights}", pairs, published_models[name], weights)
    assert expected[-1]["margin"] != 0.0
    same_steps(expected, rows(out), TOLERANCES[launcher])
