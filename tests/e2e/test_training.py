"""Training for real: the trajectory does not depend on the layout, nor on interruptions."""

import json
import shutil
import signal
import subprocess

import pytest
import torch
from support.launch import ROOT, command, environment, rows, same_trajectory, stop_while, train_many, verb
from support.tiny_training import FULL, LORA, MOVING, SPLIT, train, words

from diffdpo.models import MODELS
from diffdpo.threads import single_thread
from diffdpo.training.config import export_folder

pytestmark = pytest.mark.slow

VALIDATED = (
    "train.validation.fraction=0.3", "train.validation.every=2", "train.validation.batch=3",
    "train.validation.prompts=tests/data/validation_prompts.jsonl", "train.validation.scorers=[production]",
    "train.validation.sampling.steps=2", "train.validation.keep=best", "train.spike.window=4",
    "train.spike.threshold=1e-3", "train.spike.max_in_row=4", "seed=8",
)  # fmt: skip
"""Validation, and a guard so strict that it skips steps whose loss or gradient lies above the median, as the fourth
with this seed."""
LAUNCHED = {
    "ddp": (*LORA, "train.per_device=4"),
    "ddp-accumulate": (*LORA, "train.per_device=2"),
    "full": (*FULL, "train.per_device=4"),
    "moving-reference": (*LORA, *MOVING, "train.per_device=4"),
    "split": (*LORA, *SPLIT, "train.per_device=2"),
    "validated": (*LORA, *VALIDATED, "train.per_device=2"),
}
"""The runs of one launch, since starting the processes takes longer than training."""


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
def launched(folder, bundle, pairs, canonical):
    """The errors of all runs on two processes, the last of which continues one of a single process."""
    commands = [words(folder / "two" / name, bundle, pairs, *more) for name, more in LAUNCHED.items()]
    out = shutil.copytree(folder / "canonical", folder / "two" / "continued")
    commands.append(words(out, bundle, pairs, *LORA, "train.per_device=4", "train.steps=6"))
    return dict(zip((*LAUNCHED, "continued"), train_many(folder, "two", commands), strict=True))


@pytest.mark.parametrize("name", LAUNCHED)
def test_two_processes_follow_the_trajectory_of_one(folder, launched, expected, name):
    assert launched[name] == ""
    out = folder / "two" / name
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["world"], manifest["distributed"], manifest["zero_stage"]) == (2, "MULTI_CPU", 0)
    seen = rows(out)
    assert [row["step"] for row in seen if "learning_rate" in row] == [1, 2, 3, 4]
    same_trajectory(expected[name if name in expected else "lora"], seen)


def test_held_out_pairs_have_the_same_numbers_on_two_processes(folder, launched, expected):
    """Before the first step, when the weights are the same to the last bit; nine passes on two processes."""
    alone, shared = expected["validated"][0], rows(folder / "two" / "validated")[0]
    assert alone["step"] == 0
    losses = [key for key in alone if "/score/" not in key and "/gain/" not in key]
    assert {key: alone[key] for key in losses} == {key: shared[key] for key in losses}
    assert any(row.get("spike") for row in expected["validated"])
    songs = folder / "two" / "validated" / "validation" / "step_000004"
    assert sorted(path.name for path in (songs / "audio").iterdir()) == ["a.000.flac", "b.000.flac"]


def test_plain_processes_continue_each_other_on_the_same_trajectory(
    folder, tmp_path, bundle, pairs, launched, canonical
):
    assert launched["continued"] == ""
    whole = train(tmp_path / "whole", bundle, pairs, *LORA, "train.steps=6")
    same_trajectory(whole, rows(folder / "two" / "continued"))
    out = shutil.copytree(folder / "two" / "ddp", tmp_path / "ddp")
    same_trajectory(whole, train(out, bundle, pairs, *LORA, "train.steps=6"))


def test_two_processes_export_the_weights_of_one(folder, bundle, launched, expected):
    networks = [
        MODELS["tiny"](bundle=str(bundle), network=str(export_folder(out, 4))).load().network
        for out in (folder / "full", folder / "two" / "full")
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
