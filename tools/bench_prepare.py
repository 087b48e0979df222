"""Measures the memory of `diffdpo prepare` by the length of a song, beside that of `import torch`. JSON out.

    python tools/bench_prepare.py [--minutes 2 8 20] [--rate 44100] [--baseline FOLDER]

Each song, 16-bit FLAC of chords and clicks in stereo, is prepared alone by the tiny model in a process of its own.
`peak_mb` is the peak resident memory of that process (Linux), `over_torch_mb` what it has more than a bare
`import torch` in the same run, `cpu_s` its user and system time. `--baseline` measures an older checkout.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
TORCH = "import torch"


def write_song(path: Path, minutes: float, rate: int) -> None:
    """A song of a chord a second and two clicks a second, with a little noise."""
    rng = np.random.default_rng(0)
    time_s = np.arange(rate) / rate
    with soundfile.SoundFile(path, "w", rate, 2, subtype="PCM_16") as file:
        for second in range(round(60 * minutes)):
            roots = 110.0 * 2 ** (np.array([0, 4, 7]) / 12 + (second % 4) * 5 / 12)
            chord = sum(np.sin(2 * np.pi * root * time_s) for root in roots) / 10
            clicks = np.where(time_s % 0.5 < 0.005, 0.4, 0.0)
            noise = rng.normal(0, 0.01, (rate, 2))
            file.write((chord + clicks)[:, None] + noise)


def run(python: Sequence[str], folder: Path) -> dict[str, float]:
    """Cost of a Python process that finds the package in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, *python], cwd=folder, env=environment, stdout=errors, stderr=errors
        ) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(python)} failed:\n{errors.read().decode(errors='replace')[-2000:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"peak_mb": round(usage.ru_maxrss / 1024), "cpu_s": round(cpu_s, 1)}


def measure_songs(folder: Path, lengths: Sequence[float], rate: int) -> dict[str, dict[str, float]]:
    """The cost of each length in minutes, by its name."""
    bare = run(["-c", TORCH], folder)
    results = {TORCH: bare}
    for minutes in lengths:
        with tempfile.TemporaryDirectory() as place:
            songs, out = Path(place) / "songs", Path(place) / "out"
            songs.mkdir()
            write_song(songs / "song.flac", minutes, rate)
            cost = run(["-m", "diffdpo", "prepare", f"songs={songs}", f"out={out}", "valid_share=0"], folder)
        results[f"{minutes:g} min"] = cost | {"over_torch_mb": cost["peak_mb"] - bare["peak_mb"]}
        print(f"{minutes:g} minutes measured", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 8, 20])
    parser.add_argument("--rate", type=int, default=44100, help="sample rate of the songs in Hz")
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="an older checkout to measure")
    args = parser.parse_args()
    folder = (args.baseline or ROOT).resolve()
    results = measure_songs(folder, args.minutes, args.rate)
    print(json.dumps({"python": platform.python_version(), "rate": args.rate, **results}, indent=1))


if __name__ == "__main__":
    main()
