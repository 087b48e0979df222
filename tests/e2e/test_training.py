"""Training for real: the trajectory does not depend on the layout, nor on interruptions."""

import json
import shutil
import signal
import subprocess

import pytest
import torch
from support.launch import (
    ROOT,
    command,
    environment,
    rows,
    same_trajectory,
    stop_while,
    train_many,
    verb,
)

from diffdpo.models import MODELS
from diffdpo.threads import single_thread
from diffdpo.training.config import export_folder

pytestmark = pytest.mark.slow

WORDS = (
    "objective.name=dpo", "objective.args.beta=200", "objective.args.anchor.winner=1.0", "train.steps=4",
    "train.global_batch=8", "train.per_device=8", "train.learning_rate=1e-3", "train.save_every=2",
    "train.dropout.style=0.3", "train.trackers=[]", "seed=1",
)  # fmt: skip
LORA = ("train.lora.rank=4",)
FULL = ("train.learning_rate=1e-4",)
SPLIT = ("train.split_backward=true",)
MOVING = ("train.reference.kind=ema", "train.reference.decay=0.5")
VALIDATED = (
    "train.validation.fraction=0.3", "train.validation.every=2", "train.validation.batch=3",
    "train.validation.prompts=tests/data/validation_prompts.jsonl", "train.validation.scorers=[production]",
    "train.validation.sampling.steps=2", "train.validation.keep=best", "train.spike.window=4",
    "train.spike.threshold=1e-3", "train.spike.max_in_row=4", "seed=8",
)  # fmt: skip
"""Validation, and a guard so strict that it skips steps whose loss or gradient lies above the median, as the fourth
with this seed."""
LAUNCHES = {
    "two": {
        "ddp": (*LORA, "train.per_device=4"),
        "ddp-accumulate": (*LORA, "train.per_device=2"),
        "full": (*FULL, "train.per_device=4"),
        "moving-reference": (*LORA, *MOVING, "train.per_device=4"),
        "split": (*LORA, *SPLIT, "train.per_device=2"),
        "validated": (*LORA, *VALIDATED, "train.per_device=2"),
    },
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
"""By launcher the runs of one launch, since starting the processes takes longer than training."""
REFUSED = {
    ("zero2", "adamw_8bit"): "train.optimizer=adamw_8bit: DeepSpeed shards moments",
    ("zero3", "average"): "train.ema: ZeRO-3 shards the parameters",
    ("zero3", "moving-reference"): "train.reference.kind=ema: ZeRO-3 shards the weights it would follow",
}
CONTINUED = {
    "two": "",
    "zero2": "written with 1 process, this run has ZeRO-2 on 2 processes; launch it as before",
}
"""What a launch answers where it is to continue a run of one process."""
TRAINED = [
    (launcher, name)
    for launcher, runs in LAUNCHES.items()
    for name in runs
    if (launcher, name) not in REFUSED
]


def words(out, bundle, pairs, *more):
    return [
        f"out={out}",
        f"data.pairs={pairs}",
        "model.name=tiny",
        f"model.args.bundle={bundle}",
        *WORDS,
        *more,
    ]


def train(out, bundle, pairs, *more):
    verb("train", *words(out, bundle, pairs, *more))
    return rows(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def canonical(folder, bundle, pairs):
    """One process, LoRA."""
    return train(folder / "canonical", bundle, pairs, *LORA)


@pytest.fixture(scope="module")
def expected(folder, bundle, pairs, canonical):
    """The trajectory of one process for every kind of run."""
    with single_thread():  # as launched processes are: the last bit depends on it
        validated = train(folder / "validated", bundle, pairs, *LORA, *VALIDATED)
    return {
        "lora": canonical,
        "full": train(folder / "full", bundle, pairs, *FULL),
        "moving-reference": train(folder / "moving", bundle, pairs, *LORA, *MOVING),
        "validated": validated,
    }


@pytest.fixture(scope="module")
def launches(folder, bundle, pairs, canonical):
    """The errors of all launched runs, by launcher and name."""
    errors = {}
    for launcher, runs in LAUNCHES.items():
        commands = [words(folder / launcher / name, bundle, pairs, *more) for name, more in runs.items()]
        names = list(runs)
        if launcher in CONTINUED:
            out = shutil.copytree(folder / "canonical", folder / launcher / "continued")
            commands.append(words(out, bundle, pairs, *LORA, "train.per_device=4", "train.steps=6"))
            names.append("continued")
        for name, error in zip(names, train_many(folder, launcher, commands), strict=True):
            errors[launcher, name] = error
    return errors


@pytest.mark.parametrize(("launcher", "name"), TRAINED)
def test_two_processes_follow_the_trajectory_of_one(folder, launches, expected, launcher, name):
    assert launches[launcher, name] == ""
    out = folder / launcher / name
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["world"] == 2
    assert manifest["distributed"] == ("MULTI_CPU" if launcher == "two" else "DEEPSPEED")
    assert manifest["zero_stage"] == {"two": 0, "zero2": 2, "zero3": 3}[launcher]
    seen = rows(out)
    assert [row["step"] for row in seen if "learning_rate" in row] == [1, 2, 3, 4]
    same_trajectory(expected[name if name in expected else "lora"], seen)


def test_held_out_pairs_have_the_same_numbers_on_two_processes(folder, launches, expected):
    """Before the first step, when the weights are the same to the last bit; nine passes on two processes."""
    alone, shared = expected["validated"][0], rows(folder / "two" / "validated")[0]
    assert alone["step"] == 0
    losses = [key for key in alone if "/score/" not in key and "/gain/" not in key]
    assert {key: alone[key] for key in losses} == {key: shared[key] for key in losses}
    assert any(row.get("spike") for row in expected["validated"])
    songs = folder / "two" / "validated" / "validation" / "step_000004"
    assert sorted(path.name for path in (songs / "audio").iterdir()) == ["a.000.flac", "b.000.flac"]


@pytest.mark.parametrize(("launcher", "name"), REFUSED)
def test_what_cannot_be_sharded_is_refused(launches, launcher, name):
    assert REFUSED[launcher, name] in launches[launcher, name]


@pytest.mark.parametrize("launcher", CONTINUED)
def test_a_run_of_one_process_is_continued_by_two_where_the_format_allows_it(launches, launcher):
    assert CONTINUED[launcher] in launches[launcher, "continued"]
    assert bool(CONTINUED[launcher]) == bool(launches[launcher, "continued"])


def test_plain_processes_continue_each_other_on_the_same_trajectory(
    folder, tmp_path, bundle, pairs, launches, canonical
):
    whole = train(tmp_path / "whole", bundle, pairs, *LORA, "train.steps=6")
    same_trajectory(whole, rows(folder / "two" / "continued"))
    out = shutil.copytree(folder / "two" / "ddp", tmp_path / "ddp")
    same_trajectory(whole, train(out, bundle, pairs, *LORA, "train.steps=6"))


@pytest.mark.parametrize(("launcher", "name"), [("zero2", "accumulate"), ("zero3", "lora")])
def test_a_sharded_run_is_continued_only_as_it_was_launched(folder, bundle, pairs, launches, launcher, name):
    more = (*LAUNCHES[launcher][name], "train.per_device=8", "train.steps=6")
    error = verb("train", *words(folder / launcher / name, bundle, pairs, *more), code=2)
    stage = launcher.removeprefix("zero")
    assert error.endswith(
        f"step-00000004: written with ZeRO-{stage} on 2 processes, this run has 1 process; launch it as before, "
        "or begin a run from its export"
    )


@pytest.mark.parametrize("launcher", ["two", "zero3"])
def test_two_processes_export_the_weights_of_one(folder, bundle, launches, expected, launcher):
    networks = [
        MODELS["tiny"](bundle=str(bundle), network=str(export_folder(out, 4))).load().network
        for out in (folder / "full", folder / launcher / "full")
    ]
    for alone, shared in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(alone, shared, atol=2e-5)


@pytest.mark.parametrize(
    "more",
    [
        ("train.per_device=2",),
        ("train.reference.kind=frozen_copy",),
        ("train.gradient_checkpointing=true",),
        (*SPLIT, "train.per_device=4", "train.gradient_checkpointing=true"),
    ],
    ids=["accumulate", "frozen-copy", "checkpointing", "split"],
)
def test_the_layout_does_not_change_the_trajectory(tmp_path, bundle, pairs, canonical, more):
    same_trajectory(canonical, train(tmp_path / "run", bundle, pairs, *LORA, *more))


def test_the_first_step_knows_nothing_and_then_learns(folder, canonical):
    assert canonical[0]["margin"] == 0.0
    assert canonical[0]["loss"] == pytest.approx(0.6931472 + canonical[0]["winner_error"], rel=1e-6)
    assert canonical[-1]["margin"] > 0
    assert json.loads((folder / "canonical" / "manifest.json").read_text())["trained_parameters"] < 20_000


def test_resuming_equals_never_stopping_bit_for_bit(tmp_path, bundle, pairs, canonical):
    train(tmp_path / "run", bundle, pairs, *LORA, "train.steps=2")
    assert train(tmp_path / "run", bundle, pairs, *LORA) == canonical


def test_a_run_killed_while_it_saves_continues_from_the_checkpoint_before(tmp_path, bundle, pairs, canonical):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command("train", *words(out, bundle, pairs, *LORA, "train.steps=400", "train.save_every=1")),
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stop_while(process, lambda: list(out.glob("checkpoints/.step-0000000[3-9].partial/state/*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.glob("checkpoints/.step-*.partial"))
    last = max(int(path.name[5:]) for path in out.glob("checkpoints/step-*"))
    assert 2 <= last < 400
    steps = max(4, last + 1)
    seen = train(out, bundle, pairs, *LORA, f"train.steps={steps}")
    assert not list(out.glob("checkpoints/.step-*.partial"))
    assert [row["step"] for row in seen] == list(range(1, steps + 1))
    same_trajectory(canonical, seen[:4])


def test_the_same_command_again_returns_at_once(folder, canonical, bundle, pairs):
    out = folder / "canonical"
    before = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")}
    assert train(out, bundle, pairs, *LORA) == canonical
    assert {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")} == before


def test_another_configuration_in_the_same_folder_is_refused(folder, canonical, bundle, pairs):
    command_words = words(folder / "canonical", bundle, pairs, *LORA, "train.learning_rate=2e-3")
    assert "was made with train.learning_rate=0.001" in verb("train", *command_words, code=2)


def test_bf16_trains_close_to_fp32(tmp_path, bundle, pairs, canonical):
    seen = train(tmp_path / "run", bundle, pairs, *LORA, "train.precision=bf16")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["precision"] == "bf16"
    assert seen[0]["margin"] == 0.0  # policy and reference round alike
    assert seen[0]["winner_error"] == pytest.approx(canonical[0]["winner_error"], rel=2e-2)
    assert seen[0]["winner_error"] != canonical[0]["winner_error"]


def test_bf16_trains_alike_when_songs_are_split(tmp_path, bundle, pairs):
    """Weights that were cast to bf16 for a pass without gradient are not used in one with it."""
    bf16 = "train.precision=bf16"
    exact, whole, split = (
        train(tmp_path / name, bundle, pairs, *LORA, *more)
        for name, more in (("exact", ()), ("whole", (bf16,)), ("split", (bf16, *SPLIT)))
    )
    assert split[0]["margin"] == 0.0
    for steps in (whole, split):
        assert steps[0]["grad_norm"] == pytest.approx(exact[0]["grad_norm"], rel=1e-2)
        for expected, actual in zip(exact, steps, strict=True):
            assert actual["loss"] == pytest.approx(expected["loss"], rel=2e-2)
            assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-1)


def test_the_moving_average_is_exported(tmp_path, bundle, pairs):
    train(tmp_path / "ema", bundle, pairs, "train.ema=0.9")
    train(tmp_path / "raw", bundle, pairs)
    start, averaged, last = (
        torch.cat(
            [
                p.flatten()
                for p in MODELS["tiny"](bundle=str(bundle), network=network).load().network.parameters()
            ]
        )
        for network in ("", str(export_folder(tmp_path / "ema", 4)), str(export_folder(tmp_path / "raw", 4)))
    )
    assert 0 < (averaged - start).norm() < (last - start).norm()


def test_a_step_that_is_not_a_number_stops_the_run_and_saves_nothing(tmp_path, bundle, pairs):
    out = tmp_path / "run"
    more = ("train.learning_rate=1e30", "train.save_every=1", "train.grad_clip=1e30")
    assert "not finite" in verb("train", *words(out, bundle, pairs, *more), code=2)
    assert len(list(out.glob("checkpoints/step-*"))) <= 1
