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
    """Losses, errors, gradient norms to 1e-4; margins, beta times small differences, to 1e-4 absolute."""
    assert len(one) == len(two) > 0
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-4)
        for key in ("loss", "grad_norm", "winner_error", "loser_error"):
            assert first[key] == pytest.approx(second[key], rel=1e-4), key
