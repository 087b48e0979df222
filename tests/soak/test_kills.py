"""Every verb that works for long is killed at many moments, and run again."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.launch import ROOT, command, environment, rows, verb

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES
from diffdpo.data.scores import SCORES
from diffdpo.data.songs import SONGS
from diffdpo.types import Clip

MOMENTS = 6
"""Kills of a verb, at even distances in the time between its first file and its last."""


def clip(number: int) -> Clip:
    samples = np.random.default_rng(number).normal(0, 0.1, (2, 3 * 44100)).astype(np.float32)
    return Clip(samples=samples, sample_rate=44100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    prompts = [{"id": f"p{i}", "text": "rock", "duration_s": 3 + i % 3} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts))
    for number in range(8):
        audio.write(folder / "songs" / f"{number}.flac", clip(number))
    verb("sample", *sample_words(folder, Path()), f"out={folder / 'sampled'}", "per_prompt=2")
    return folder


def sample_words(folder: Path, bundle: Path) -> list[str]:
    model = [f"model.args.bundle={bundle}"] if bundle.name else []
    return [f"prompts={folder / 'prompts.jsonl'}", "model.name=tiny", *model, "sampling.steps=4"]


def sampled(out: Path) -> dict[str, torch.Tensor]:
    names = [row.sample_id for row in tables.read_rows(out, SAMPLES)]
    assert len(set(names)) == len(names)
    return {name: load_file(out / "latents" / f"{name}.safetensors")["latents"] for name in names}


def prepared(out: Path) -> dict[str, torch.Tensor]:
    names = [row.id for row in tables.read_rows(out, SONGS) if not row.error]
    assert len(set(names)) == len(names)
    return {name: load_file(out / "latents" / f"{name}.safetensors")["latents"] for name in names}


def scored(out: Path) -> dict[str, torch.Tensor]:
    values = {
        f"{row.sha256}|{row.axis}|{row.prompt}": torch.tensor(row.value)
        for row in tables.read_rows(out, SCORES)
    }
    assert len(values) == len(tables.read_rows(out, SCORES))
    return values


def trained(out: Path) -> dict[str, torch.Tensor]:
    return {f"{row['step']}|{name}": torch.tensor(value) for row in rows(out) for name, value in row.items()}


def words(name: str, folder: Path, bundle: Path, pairs: Path) -> list[str]:
    return {
        "sample": ["sample", *sample_words(folder, bundle), "per_prompt=2", "sampling.batch=2"],
        "prepare": [
            "prepare", f"songs={folder / 'songs'}", "valid_share=0", "model.name=tiny",
            f"model.args.bundle={bundle}",
        ],
        "score": ["score", f"samples=[{folder / 'sampled'}]"],
        "train": [
            "train", f"data.pairs={pairs}", "model.name=tiny", f"model.args.bundle={bundle}", "train.steps=30",
            "train.global_batch=4", "train.per_device=4", "train.learning_rate=1e-3", "train.save_every=3",
            "train.lora.rank=4", "train.dropout.style=0.3", "train.trackers=[]",
        ],
    }[name]  # fmt: skip


VALUES = {"sample": sampled, "prepare": prepared, "score": scored, "train": trained}


@pytest.fixture(scope="module", params=VALUES)
def reference(request, folder, bundle, pairs):
    """A run that nothing stops: its words, its values, and the seconds from its first file to its end."""
    name, out = request.param, folder / f"{request.param}-whole"
    process = subprocess.Popen(
        command(*words(name, folder, bundle, pairs), f"out={out}"), cwd=ROOT, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(process, out)
    start = time.monotonic()
    assert process.wait(600) == 0
    return name, VALUES[name](out), time.monotonic() - start


def wait_for(process: subprocess.Popen, out: Path) -> None:
    """Until the run has opened its folder."""
    deadline = time.monotonic() + 300
    while not (out / "config.yaml").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_kill_loses_only_what_was_in_progress(folder, bundle, pairs, reference, moment):
    name, expected, seconds = reference
    out = folder / f"{name}-{moment}"
    line = [*words(name, folder, bundle, pairs), f"out={out}"]
    process = subprocess.Popen(
        command(*line), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(process, out)
    time.sleep(seconds * (moment + 0.5) / MOMENTS)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    verb(*line)
    values = VALUES[name](out)
    assert values.keys() == expected.keys()
    for key, value in expected.items():
        if name == "sample":  # the rest of a batch is another batch, which rounds otherwise
            assert torch.allclose(values[key], value, atol=1e-4), key
        else:
            assert torch.equal(values[key], value) or (value != value and values[key] != values[key]), key
    assert not list(out.rglob("*.partial*"))
