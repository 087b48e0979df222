"""Real launches: every run is a process of its own, as a person would start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
LAUNCHERS = {
    "one": [sys.executable, "-m", "diffdpo"],
    "two": ["--config_file", str(CONFIGS / "cpu_2.yaml")],
    "zero2": ["--config_file", str(CONFIGS / "cpu_zero2.yaml")],
    "zero3": ["--config_file", str(CONFIGS / "cpu_zero3.yaml")],
}


def command(launcher: str, *words: str) -> list[str]:
    if launcher == "one":
        return [*LAUNCHERS["one"], *words]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    return [*accelerate, *LAUNCHERS[launcher], "-m", "diffdpo", *words]


def environment(launcher: str) -> dict[str, str]:
    extra = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    if launcher == "two":
        extra["ACCELERATE_USE_CPU"] = "true"
    return {**os.environ, **extra}


def run(*words: str, launcher: str = "one", fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a verb and insist on its exit code: 0, or 2 for a user's mistake."""
    done = subprocess.run(
        command(launcher, *words),
        cwd=ROOT,
        env=environment(launcher),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def same_trajectory(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    """Losses, errors, gradient norms to 1e-4 of themselves, all else to 1e-4 absolute, margins to 4e-4.

    A margin is beta, up to 200 here, times a difference of errors between 2 and 4, whose last bit in single
    precision is 2**-22: that bit alone moves a margin by 5e-5, and nothing averages it out in a bin of one example.
    """
    assert len(one) == len(two) > 0
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            near = {"rel": 1e-4, "abs": 4e-4 if key.startswith("margin") else 1e-4}
            if key in ("loss", "grad_norm", "winner_error", "loser_error"):
                near["abs"] = 0.0
            assert value == pytest.approx(second[key], **near), f"{key} at step {first['step']}"
