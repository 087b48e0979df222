"""Every verb is killed at random moments and run again: nothing that was finished is lost or made twice, and the
end is that of a run which nothing stopped, bit for bit."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.launch import ROOT, command, environment, launch, launch_words, rows, verb

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS
from diffdpo.data.ratings import RATINGS
from diffdpo.data.samples import SAMPLES
from diffdpo.data.scores import SCORES
from diffdpo.data.songs import SONGS
from diffdpo.types import Clip

KILLS = 20
"""Kills of a verb, at random moments between its first file and its end."""

Values = dict[str, Any]


def clip(number: int) -> Clip:
    samples = np.random.default_rng(number).normal(0, 0.1, (2, 3 * 44100)).astype(np.float32)
    return Clip(samples=samples, sample_rate=44100)


def write_prompts(path: Path, name: str, count: int) -> None:
    prompts = [{"id": f"{name}{i}", "text": f"rock {name}", "duration_s": 3 + i % 3} for i in range(count)]
    path.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """Prompts, recordings, and songs with scores."""
    folder = tmp_path_factory.mktemp("kills")
    write_prompts(folder / "prompts.jsonl", "p", 8)
    write_prompts(folder / "evaluation.jsonl", "e", 8)
    for number in range(8):
        audio.write(folder / "songs" / f"{number}.flac", clip(number))
    verb(*sample_words(folder, bundle), f"out={folder / 'sampled'}")
    verb(
        "score", f"samples=[{folder / 'sampled'}]", f"out={folder / 'scored'}", "scorers=[production,harmony]"
    )
    return folder


def sample_words(folder: Path, bundle: Path) -> list[str]:
    return ["sample", f"prompts={folder / 'prompts.jsonl'}", f"model.args.bundle={bundle}", "sampling.steps=4",
            "per_prompt=2", "sampling.batch=3"]  # fmt: skip


def prepare_words(folder: Path, bundle: Path) -> list[str]:
    return ["prepare", f"songs={folder / 'songs'}", "valid_share=0", f"model.args.bundle={bundle}"]


def score_words(folder: Path, bundle: Path) -> list[str]:
    return ["score", f"samples=[{folder / 'sampled'}]"]


def mine_words(folder: Path, bundle: Path) -> list[str]:
    return ["mine", f"samples=[{folder / 'sampled'}]", f"scores={folder / 'scored'}", "rule.args.min_margin=0.01",
            "axes=[production.balance]"]  # fmt: skip


TRAIN = ["global_batch=4", "per_device=4", "learning_rate=1e-3", "save_every=3", "lora.rank=4", "trackers=[]"]


def train_words(folder: Path, bundle: Path) -> list[str]:
    verb(*mine_words(folder, bundle), f"out={folder / 'pairs'}")
    return ["train", f"data.pairs={folder / 'pairs'}", f"model.args.bundle={bundle}", "train.steps=30",
            "train.dropout.style=0.3", *(f"train.{word}" for word in TRAIN)]  # fmt: skip


def round_words(folder: Path, bundle: Path) -> list[str]:
    return ["round", f"mining_prompts={folder / 'prompts.jsonl'}",
            f"evaluation_prompts={folder / 'evaluation.jsonl'}", f"model.args.bundle={bundle}", "candidates=3",
            "evaluation_samples=1", "sample.sampling.steps=2", "score.scorers=[production]",
            "mine.axes=[production.balance]", "mine.rule.args.min_margin=0.01", "train.train.steps=6",
            *(f"train.train.{word}" for word in TRAIN)]  # fmt: skip


def latents(out: Path, names: list[str]) -> Values:
    assert len(set(names)) == len(names)
    return {name: load_file(out / "latents" / f"{name}.safetensors")["latents"] for name in names}


def sample_values(out: Path) -> Values:
    return latents(out, [row.sample_id for row in tables.read_rows(out, SAMPLES)])


def prepare_values(out: Path) -> Values:
    return latents(out, [row.id for row in tables.read_rows(out, SONGS) if not row.error])


def score_values(out: Path) -> Values:
    table = tables.read_rows(out, SCORES)
    values = {f"{row.sha256}|{row.axis}|{row.prompt}": row.value for row in table}
    assert len(values) == len(table)
    return values


def mine_values(out: Path) -> Values:
    pairs = {f"{row.winner}|{row.loser}": dict(row.margins) for row in tables.read_rows(out, PAIRS)}
    return pairs | {row.sample_id: row.rating for row in tables.read_rows(out, RATINGS)}


def train_values(out: Path) -> Values:
    newest = max((out / "checkpoints").glob("step-????????"))
    metrics = {f"{row['step']}|{name}": value for row in rows(out) for name, value in row.items()}
    return metrics | load_file(newest / "export" / "pytorch_lora_weights.safetensors")


def round_values(out: Path) -> Values:
    report = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    effects = {axis["axis"]: json.dumps(axis, sort_keys=True) for axis in report["axes"]}
    return effects | train_values(out / "round-1" / "train") | sample_values(out / "round-1" / "aligned")


@dataclass(frozen=True)
class Stage:
    """A verb with the words of its command, the values that it leaves, and the files of songs that are finished."""

    words: Callable[[Path, Path], list[str]]
    values: Callable[[Path], Values]
    finished: Callable[[Path], Mapping[Path, int]] = lambda out: {}
    launcher: str = "one"
    """What starts it: one process, or two under a backend, which are killed with their launcher."""


def times(out: Path, names: list[str], folders: tuple[str, ...]) -> Mapping[Path, int]:
    """When the files of songs were written."""
    paths = [path for name in names for kind in folders for path in (out / kind).glob(f"{name}.*")]
    return {path: path.stat().st_mtime_ns for path in paths}


def sample_times(out: Path) -> Mapping[Path, int]:
    return times(out, [row.sample_id for row in tables.read_rows(out, SAMPLES)], ("latents", "audio"))


def prepare_times(out: Path) -> Mapping[Path, int]:
    return times(out, [row.id for row in tables.read_rows(out, SONGS)], ("latents", "embeddings"))


SHARED = ["train.strategy=auto", "train.global_batch=4", "train.per_device=2", "train.steps=12"]
"""Words of a training that two processes share."""


def shared_words(folder: Path, bundle: Path) -> list[str]:
    return [*train_words(folder, bundle), *SHARED]


STAGES = {
    "prepare": Stage(prepare_words, prepare_values, prepare_times),
    "sample": Stage(sample_words, sample_values, sample_times),
    "score": Stage(score_words, score_values),
    "mine": Stage(mine_words, mine_values),
    "train": Stage(train_words, train_values),
    "train under ZeRO-2": Stage(shared_words, train_values, launcher="zero2"),
    "train under FSDP2": Stage(shared_words, train_values, launcher="fsdp2"),
    "round": Stage(round_words, round_values, lambda out: sample_times(out / "round-1" / "candidates")),
}


def start(words: list[str], out: Path, launcher: str = "one") -> "subprocess.Popen[bytes]":
    """A command in processes of its own, once it has opened its folder."""
    line = command(*words, f"out={out}")
    if launcher != "one":
        line = [*launch_words(launcher), *line[1:]]
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment(launcher), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not (out / "config.yaml").is_file() and not (out / ".lock").is_file():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


@pytest.fixture(scope="module", params=STAGES)
def reference(request, folder, bundle) -> tuple[str, list[str], Values, float]:
    """A run that nothing stops: stage, words, values, and the seconds from its first file to its end."""
    name, out = request.param, folder / f"{request.param}-whole"
    words = STAGES[name].words(folder, bundle)
    process = start(words, out, STAGES[name].launcher)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    return name, words, STAGES[name].values(out), time.monotonic() - begin


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_loses_only_what_was_in_progress(folder, reference, number):
    name, words, expected, seconds = reference
    stage, out = STAGES[name], folder / f"{name}-{number}"
    moment = random.Random(f"{name}-{number}").random() * seconds
    process = start(words, out, stage.launcher)
    time.sleep(moment)
    kill_all(process)
    finished = stage.finished(out)
    if stage.launcher == "one":
        verb(*words, f"out={out}")
    else:
        launch(stage.launcher, *words, f"out={out}")
    assert equal(stage.values(out), expected)
    assert finished.items() <= stage.finished(out).items()
    assert not list(out.rglob("*.partial*"))


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """Kill a launcher and its processes at one moment."""
    family = psutil.Process(process.pid)
    for member in (family, *family.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate(timeout=60)


def equal(one: Values, two: Values) -> bool:
    """Whether two runs left the same values, bit for bit."""
    if one.keys() != two.keys():
        return False
    return all(
        torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else repr(value) == repr(two[key])
        for key, value in one.items()
    )


def test_two_runs_at_once_do_not_mix(folder, reference):
    """The second is refused in one line while the first lives, and the first ends as if it were alone."""
    name, words, expected, _ = reference
    if STAGES[name].launcher != "one":
        pytest.skip("the lock is the same for one process and for two")
    out = folder / f"{name}-twice"
    process = start(words, out)
    process.send_signal(signal.SIGSTOP)
    try:
        answer = verb(*words, f"out={out}", code=2)
    finally:
        process.send_signal(signal.SIGCONT)
    assert "another run is at work here" in answer
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    assert equal(STAGES[name].values(out), expected)
