"""DeepSpeed on two processes: under each stage of ZeRO the trajectory is that of one process.

A launch for each stage, since starting the processes takes longer than training. `make soak` has every layout and
every published model (`tests/soak/test_layouts.py`, `tests/soak/test_matrix.py`).
"""

import shutil

import pytest
import torch
from support import model_matrix
from support.launch import rows, same_trajectory, train_many, verb
from support.layouts import check_backend, layout_words, same_numbers
from support.tiny_training import FULL, LORA, MOVING, SPLIT, train, words

from diffdpo.models import MODELS
from diffdpo.threads import single_thread
from diffdpo.training.config import export_folder

pytestmark = pytest.mark.slow

LAUNCHES = {
    "zero1": {},
    "zero2": {
        "accumulate": (*LORA, "train.per_device=2"),
        "adamw_8bit": (*LORA, "train.optimizer=adamw_8bit", "train.per_device=4"),
        "split": (*LORA, *SPLIT, "train.per_device=2"),
        "moving-reference": (*LORA, *MOVING, "train.per_device=4"),
    },
    "zero3": {
        "lora": (*LORA, "train.per_device=4"),
        "split": (*LORA, *SPLIT, "train.per_device=4"),
        "full": (*FULL, "train.per_device=4"),
        "average": (*FULL, "train.per_device=4", "train.ema=0.9"),
        "moving-reference": (*LORA, *MOVING, "train.per_device=4"),
    },
}
"""By stage runs of the tiny model. Each stage has the layout of `LAYOUT` besides."""
LAYOUT = "2x2.2"
PUBLISHED = {"zero3": {("ace_step", "lora"): SPLIT, ("stable_audio_3", "full"): SPLIT}}
"""By stage published models and weights, and how their steps are computed. Their prompts are in no cache yet."""
REFUSED = {
    ("zero2", "adamw_8bit"): "train.optimizer=adamw_8bit: DeepSpeed shards moments",
    ("zero3", "average"): "train.ema: ZeRO-3 shards the parameters",
    ("zero3", "moving-reference"): "train.reference.kind=ema: ZeRO-3 shards the weights it would follow",
}
CONTINUED = ("zero2", "continued")
"""A run of one process that ZeRO-2 is to continue."""
RUNS = [(stage, name) for stage, runs in LAUNCHES.items() for name in runs if (stage, name) not in REFUSED]
PUBLISHED_RUNS = [(stage, *run) for stage, runs in PUBLISHED.items() for run in runs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def alone(folder, bundle, pairs):
    """The trajectories of one process."""
    with single_thread():  # as launched processes are: the last bit depends on it
        verb("train", *layout_words(folder / "one" / "layout", bundle, pairs, "1x8"))
        return {
            "layout": rows(folder / "one" / "layout"),
            "lora": train(folder / "one" / "lora", bundle, pairs, *LORA),
            "full": train(folder / "one" / "full", bundle, pairs, *FULL),
            "moving-reference": train(folder / "one" / "moving", bundle, pairs, *LORA, *MOVING),
        }


@pytest.fixture(scope="module")
def launched(folder, published_models, bundle, pairs, alone):
    """The errors of all launched runs, by stage and name."""
    errors = {}
    for stage, runs in LAUNCHES.items():
        lines = {
            (stage, name): words(folder / stage / name, bundle, pairs, *more) for name, more in runs.items()
        }
        lines[stage, "layout"] = layout_words(folder / stage / "layout", bundle, pairs, LAYOUT)
        if stage == CONTINUED[0]:
            out = shutil.copytree(folder / "one" / "lora", folder / stage / "continued")
            lines[CONTINUED] = words(out, bundle, pairs, *LORA, "train.per_device=4", "train.steps=6")
        for run, more in PUBLISHED.get(stage, {}).items():
            out, model = folder / stage / "-".join(run), published_models[run[0]]
            lines[(stage, *run)] = model_matrix.words(out, pairs, model, run[1], "train.per_device=1", *more)
        errors |= dict(zip(lines, train_many(folder, stage, list(lines.values())), strict=True))
    return errors


@pytest.mark.parametrize(("stage", "name"), RUNS)
def test_two_processes_follow_the_trajectory_of_one(folder, launched, alone, stage, name):
    assert launched[stage, name] == ""
    check_backend(folder / stage / name, stage)
    seen = rows(folder / stage / name)
    assert [row["step"] for row in seen if "learning_rate" in row] == [1, 2, 3, 4]
    same_trajectory(alone[name if name in alone else "lora"], seen)


@pytest.mark.parametrize("stage", LAUNCHES)
def test_every_stage_makes_the_same_steps(folder, launched, alone, stage):
    assert launched[stage, "layout"] == ""
    check_backend(folder / stage / "layout", stage)
    same_numbers(alone["layout"], folder / stage / "layout")


@pytest.mark.parametrize(("stage", "name", "weights"), PUBLISHED_RUNS)
def test_published_models_follow_the_trajectory_of_one(
    folder, published_models, pairs, launched, stage, name, weights
):
    assert launched[stage, name, weights] == ""
    out = folder / stage / f"{name}-{weights}"
    check_backend(out, stage)
    expected = model_matrix.train(
        folder / "one" / f"{name}-{weights}", pairs, published_models[name], weights
    )
    assert expected[-1]["margin"] != 0.0
    model_matrix.same_steps(expected, rows(out), 1e-4)


@pytest.mark.parametrize(("stage", "name"), REFUSED)
def test_what_cannot_be_sharded_is_refused(launched, stage, name):
    assert REFUSED[stage, name] in launched[stage, name]


def test_a_run_of_one_process_is_not_continued(launched):
    message = "written with 1 process, this run has ZeRO-2 on 2 processes; launch it as before"
    assert message in launched[CONTINUED]


@pytest.mark.parametrize(("stage", "name"), [("zero2", "accumulate"), ("zero3", "lora")])
def test_a_sharded_run_is_continued_only_as_it_was_launched(folder, bundle, pairs, launched, stage, name):
    more = (*LAUNCHES[stage][name], "train.per_device=8", "train.steps=6")
    error = verb("train", *words(folder / stage / name, bundle, pairs, *more), code=2)
    assert error.endswith(
        f"step-00000004: written with ZeRO-{stage[-1]} on 2 processes, this run has 1 process; launch it as "
        "before, or begin a run from its export"
    )


def test_zero3_exports_the_weights_of_one_process(folder, bundle, launched, alone):
    networks = [
        MODELS["tiny"](bundle=str(bundle), network=str(export_folder(out, 4))).load().network
        for out in (folder / "one" / "full", folder / "zero3" / "full")
    ]
    for own, shared in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(own, shared, atol=2e-5)
