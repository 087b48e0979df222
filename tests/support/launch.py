"""Verbs run as a person runs them: in this process, in one of their own, or launched on several."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffdpo.cli import app

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
LAUNCHERS = {
    "two": ["cpu_2"],
    "four": ["cpu_2", "--num_processes", "4"],
    **{
        name: [f"cpu_{name}"]
        for name in ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2")
    },
}
"""Processes by the name of the backend: the configuration of accelerate, and more words."""


@dataclass(frozen=True)
class Answer:
    """The end of a command."""

    code: int
    stdout: str
    stderr: str


def verb(*words: object, code: int = 0) -> str:
    """A verb in this process, which spares the seconds of a start: what it printed, or its error, one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.stderr
    if code == 2:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        return errors[0]
    return result.output


def hide_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a package count as not installed."""
    version = metadata.version

    def version_of_others(package: str) -> str:
        if package == name:
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(metadata, "version", version_of_others)


def command(*words: object) -> list[str]:
    """The command line of a verb in a process of its own."""
    return [sys.executable, "-m", "diffdpo", *map(str, words)]


def environment(launcher: str = "one") -> dict[str, str]:
    extra = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    if launcher in ("two", "four"):
        extra["ACCELERATE_USE_CPU"] = "true"
    return {**os.environ, **extra}


def run(*words: object, fails: bool = False) -> Answer:
    """A verb in a process of its own; its exit code is 0, or 2 for a user's mistake."""
    return _finish(command(*words), "one", fails)


def launch_words(launcher: str) -> list[str]:
    """The beginning of a command line that starts two processes with `accelerate launch`."""
    config, *more = LAUNCHERS[launcher]
    words = ["--main_process_port", "0", "--config_file", str(CONFIGS / f"{config}.yaml"), *more]
    return [sys.executable, "-m", "accelerate.commands.launch", *words]


def torchrun_words() -> list[str]:
    """The beginning of a command line that starts two processes with `torchrun`."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(launcher: str, *words: object, fails: bool = False) -> Answer:
    """A verb under `accelerate launch`."""
    return _finish([*launch_words(launcher), "-m", "diffdpo", *map(str, words)], launcher, fails)


def train_many(
    folder: Path, launcher: str, commands: list[list[str]], script: str = "train_many.py"
) -> list[str]:
    """Trainings one after another in one launch, since starting takes longer than training: the error of each.

    `script` is one of tests/support.
    """
    path = folder / f"{launcher}.json"
    path.write_text(json.dumps(commands))
    script_path = str(ROOT / "tests" / "support" / script)
    _finish([*launch_words(launcher), script_path, str(path)], launcher, fails=False)
    return list(json.loads(path.with_suffix(".errors.json").read_text()))


def _finish(words: list[str], launcher: str, fails: bool) -> Answer:
    process = subprocess.run(
        words, cwd=ROOT, env=environment(launcher), capture_output=True, text=True, check=False
    )
    assert (process.returncode != 0) == fails, process.stderr[-4000:]
    return Answer(process.returncode, process.stdout, process.stderr)


def stop_while(process: "subprocess.Popen[bytes]", condition: Callable[[], object]) -> None:
    """Stop a process at a moment at which a condition on its files holds; the condition still holds afterwards."""
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None, "it ended before the moment came"
        assert time.monotonic() < deadline
        if not condition():
            time.sleep(0.001)
            continue
        process.send_signal(signal.SIGSTOP)
        if condition():
            return
        process.send_signal(signal.SIGCONT)


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock and the machine."""
    from diffdpo.training.throughput import TIMINGS  # torch

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in TIMINGS and not k.endswith("seconds")}
        for line in lines
    ]


def same_trajectory(reference: list[dict[str, float]], actual: list[dict[str, float]]) -> None:
    """Losses, errors, gradient norms to 1e-4 of themselves, all else to 1e-4 absolute, margins to 4e-4.

    A margin is beta, up to 200 here, times a difference of errors between 2 and 4, whose last bit in single
    precision is 2**-22: that bit alone moves a margin by 5e-5, and nothing averages it out in a bin of one example.
    """
    assert len(reference) == len(actual) > 0
    for row, row_of_actual in zip(reference, actual, strict=True):
        assert row.keys() == row_of_actual.keys()
        for key, value in row.items():
            tolerance = {"rel": 1e-4, "abs": 4e-4 if key.startswith("margin") else 1e-4}
            if key in ("loss", "grad_norm", "winner_error", "loser_error"):
                tolerance["abs"] = 0.0
            assert value == pytest.approx(row_of_actual[key], **tolerance), f"{key} at step {row['step']}"
