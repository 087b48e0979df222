"""Training launched for real: the trajectory does not depend on the layout, nor on interruptions."""

import json
import signal
import subprocess
import time

import pytest
import torch
from support.launch import ROOT, command, environment, rows, run, same_trajectory

from diffdpo.models import MODELS
from diffdpo.recipes.train import exported

pytestmark = pytest.mark.slow

WORDS = (
    "objective.name=dpo", "objective.args.beta=200", "objective.args.anchor.winner=1.0", "train.steps=4",
    "train.global_batch=8", "train.per_device=8", "train.learning_rate=1e-3", "train.save_every=2",
    "train.dropout.style=0.3",
    "train.trackers=[]", "seed=1",
)  # fmt: skip
LORA = ("train.lora.rank=4",)


def train(out, bundle, pairs, *words, launcher="one"):
    model = ("model.name=tiny", f"model.args.bundle={bundle}")
    run("train", f"out={out}", f"data.pairs={pairs}", *model, *WORDS, *words, launcher=launcher)
    return rows(out), json.loads((out / "manifest.json").read_text())


@pytest.fixture(scope="module")
def canonical(tmp_path_factory, bundle, pairs):
    out = tmp_path_factory.mktemp("canonical") / "run"
    return out, *train(out, bundle, pairs, *LORA)


@pytest.mark.parametrize(
    ("launcher", "words", "says"),
    [
        ("one", ("train.per_device=2",), {"world": 1, "distributed": "NO"}),
        ("two", ("train.per_device=4",), {"world": 2, "distributed": "MULTI_CPU"}),
        ("two", ("train.per_device=2",), {"world": 2, "distributed": "MULTI_CPU"}),
        ("zero2", ("train.per_device=2",), {"world": 2, "distributed": "DEEPSPEED", "zero_stage": 2}),
        ("zero3", ("train.per_device=4",), {"world": 2, "distributed": "DEEPSPEED", "zero_stage": 3}),
        ("one", ("train.reference.kind=frozen_copy",), {"world": 1}),
        ("one", ("train.gradient_checkpointing=true",), {"world": 1}),
        ("one", ("train.compile=true",), {"world": 1}),
    ],
    ids=[
        "accumulate",
        "ddp",
        "ddp-accumulate",
        "zero2-accumulate",
        "zero3",
        "frozen-copy",
        "checkpointing",
        "compile",
    ],
)
def test_the_layout_does_not_change_the_trajectory(tmp_path, bundle, pairs, canonical, launcher, words, says):
    _, expected, _ = canonical
    seen, manifest = train(tmp_path / "run", bundle, pairs, *LORA, *words, launcher=launcher)
    assert {key: manifest[key] for key in says} == says
    assert len(seen) == 4
    same_trajectory(expected, seen)


def test_the_first_step_knows_nothing_and_then_learns(canonical):
    _, metrics, manifest = canonical
    assert metrics[0]["margin"] == 0.0
    assert metrics[0]["loss"] == pytest.approx(0.6931472 + metrics[0]["winner_error"], rel=1e-6)
    assert metrics[-1]["margin"] > 0
    assert manifest["trained_parameters"] < 20_000


@pytest.mark.parametrize("launcher", ["two", "zero3"])
def test_full_fine_tuning_is_the_same_on_two_processes(tmp_path, bundle, pairs, launcher):
    words = ("train.learning_rate=1e-4",)
    alone, _ = train(tmp_path / "one", bundle, pairs, *words)
    shared, manifest = train(tmp_path / "two", bundle, pairs, *words, "train.per_device=4", launcher=launcher)
    assert manifest["world"] == 2
    same_trajectory(alone, shared)
    networks = [
        MODELS["tiny"](bundle=str(bundle), network=str(exported(tmp_path / name, 4))).load().network
        for name in ("one", "two")
    ]
    for one, two in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(one, two, atol=2e-5)


def test_resuming_equals_never_stopping_bit_for_bit(tmp_path, bundle, pairs, canonical):
    _, expected, _ = canonical
    train(tmp_path / "run", bundle, pairs, *LORA, "train.steps=2")
    seen, _ = train(tmp_path / "run", bundle, pairs, *LORA)
    assert seen == expected


def test_a_killed_run_continues_and_loses_at_most_what_was_not_saved(tmp_path, bundle, pairs, canonical):
    _, expected, _ = canonical
    out = tmp_path / "run"
    words = (
        "train",
        f"out={out}",
        f"data.pairs={pairs}",
        "model.name=tiny",
        f"model.args.bundle={bundle}",
        *WORDS,
        *LORA,
    )
    process = subprocess.Popen(
        command("one", *words, "train.steps=400", "train.save_every=1"), cwd=ROOT, env=environment("one"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-0000000[2-9]/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = max(int(path.name[5:]) for path in out.glob("checkpoints/step-*"))
    assert 2 <= done < 400
    seen, _ = train(out, bundle, pairs, *LORA, f"train.steps={max(4, done + 1)}")
    assert [row["step"] for row in seen] == list(range(1, max(4, done + 1) + 1))
    assert seen[:4] == expected


def test_the_same_command_again_returns_at_once(canonical, bundle, pairs):
    out, expected, _ = canonical
    before = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")}
    again, _ = train(out, bundle, pairs, *LORA)
    assert again == expected
    assert {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")} == before


def test_another_configuration_in_the_same_folder_is_refused(canonical, bundle, pairs):
    out, _, _ = canonical
    words = (
        "train",
        f"out={out}",
        f"data.pairs={pairs}",
        "model.name=tiny",
        f"model.args.bundle={bundle}",
        *WORDS,
        *LORA,
    )
    done = run(*words, "train.learning_rate=2e-3", fails=True)
    assert done.returncode == 2
    assert "was made with train.learning_rate=0.001" in done.stderr


def test_bf16_trains_close_to_fp32(tmp_path, bundle, pairs, canonical):
    _, expected, _ = canonical
    seen, manifest = train(tmp_path / "run", bundle, pairs, *LORA, "train.precision=bf16")
    assert manifest["precision"] == "bf16"
    assert seen[0]["margin"] == 0.0  # policy and reference round alike
    assert seen[0]["winner_error"] == pytest.approx(expected[0]["winner_error"], rel=2e-2)


def test_the_moving_average_is_exported_and_zero3_refuses_it(tmp_path, bundle, pairs):
    words = ("train.learning_rate=1e-3", "train.ema=0.9")
    train(tmp_path / "ema", bundle, pairs, *words)
    train(tmp_path / "raw", bundle, pairs, "train.learning_rate=1e-3")
    start, averaged, last = (
        torch.cat(
            [
                p.flatten()
                for p in MODELS["tiny"](bundle=str(bundle), network=network).load().network.parameters()
            ]
        )
        for network in ("", str(exported(tmp_path / "ema", 4)), str(exported(tmp_path / "raw", 4)))
    )
    assert 0 < (averaged - start).norm() < (last - start).norm()
    model = ("model.name=tiny", f"model.args.bundle={bundle}")
    done = run(
        "train", f"out={tmp_path / 'z'}", f"data.pairs={pairs}", *model, *WORDS, *words, "train.per_device=4",
        launcher="zero3", fails=True,
    )  # fmt: skip
    assert "train.ema: ZeRO-3 shards the parameters" in done.stderr


def test_a_step_that_is_not_a_number_stops_the_run_and_saves_nothing(tmp_path, bundle, pairs):
    model = ("model.name=tiny", f"model.args.bundle={bundle}")
    out = tmp_path / "run"
    words = ("train.learning_rate=1e30", "train.save_every=1", "train.grad_clip=1e30")
    done = run("train", f"out={out}", f"data.pairs={pairs}", *model, *WORDS, *words, fails=True)
    assert done.returncode == 2
    assert "not finite" in done.stderr
    assert len(list(out.glob("checkpoints/step-*"))) <= 1
