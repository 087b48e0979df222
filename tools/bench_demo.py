"""The demo's main job, seed by seed: what alignment does to each axis, and what the whole costs. JSON out.

    python tools/bench_demo.py [--seeds 0 1 2] [--out FOLDER] [--set train.train.steps=80 …] [--table]

Every seed is a run of `diffdpo demo configs/tiny/demo.yaml` in a process of its own: other candidates, pairs,
training and evaluation songs. A run that is complete is not done again, one that was stopped goes on. In the pooled
summary prompts are drawn with replacement, each with its songs of all seeds: the interval is about other prompts,
the count of seeds about other draws. CPU seconds are those of all attempts at a run, the peak that of the largest.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.config import build_config
from diffdpo.evaluation.effects import PairedSample, effects, standardised_change
from diffdpo.progress import log
from diffdpo.recipes.round import RoundRun
from diffdpo.run_dir import open_run
from diffdpo.runs import is_finished, read_json, write_json
from diffdpo.statistics import Effect, paired_effect
from tools.bench.measure import rounded

DEMO = ROOT / "configs" / "tiny" / "demo.yaml"
RESAMPLES = 4000


def run(seed: int, folder: Path, overrides: Sequence[str]) -> None:
    """One seed, unless it is complete; what it took is written beside its folder."""
    words = [*overrides, f"seed={seed}", f"out={folder.resolve()}"]
    open_run(build_config(RoundRun, DEMO, words))  # refuses a folder of other settings, complete or not
    if is_finished(folder):
        return
    log(f"seed {seed}")
    attempts = costs(folder)
    record = cost_file(folder)
    write_json(record, [*attempts, {}])  # stays so if this process is stopped, too: the cost is then unknown
    code, took = measured([sys.executable, "-m", "diffdpo", "demo", str(DEMO), *words])
    write_json(record, [*attempts, took])
    if code:
        raise SystemExit(f"seed {seed}: diffdpo demo ended with exit code {code}; run this again to go on")


def measured(command: Sequence[str]) -> tuple[int, dict[str, float]]:
    """Exit code of a process run to its end, and what it took, its own children included."""
    began, peak, ended = time.monotonic(), 0.0, 0
    with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as process:
        try:
            while not ended:
                time.sleep(0.2)
                peak = max(peak, peak_mb(process.pid))
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        except BaseException:  # this process is stopped: the run must not go on by itself
            process.terminate()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.monotonic() - began,
        "peak_mb": peak or usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2),
    }


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process so far; 0 if that is not to be had.

    What the kernel tells at its end (ru_maxrss) will not do on Linux: it begins with the parent's own peak.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def cost_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-cost.json")


def costs(folder: Path) -> list[dict[str, float]]:
    """What each attempt at a run took."""
    return read_json(cost_file(folder)) if cost_file(folder).is_file() else []


def total(attempts: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of all attempts at a run; nothing is known of the whole if one of them was not measured to its end."""
    known = bool(attempts) and all(attempts)
    return {
        "attempts": len(attempts),
        "cpu_s": sum(each["cpu_s"] for each in attempts) if known else None,
        "wall_s": sum(each["wall_s"] for each in attempts) if known else None,
        "peak_mb": max(each["peak_mb"] for each in attempts) if known else None,
    }


def one(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A seed's effects, each with its interval, and the error of its winners."""
    shown = manifest["best"] or manifest["rounds"]
    return {
        "pairs": report["mining"].get("pairs"),
        "winner_rise": manifest["results"][shown - 1]["winner_rise"],
        "axes": {
            axis["axis"]: {"role": axis["role"], "direction": axis["direction"]}
            | rounded({key: axis["effect"][key] for key in ("mean", "low", "high", "effect_size")})
            for axis in report["axes"]
        },
    }


def pooled(reports: Mapping[int, Mapping[str, Any]], resamples: int = RESAMPLES) -> dict[str, Any]:
    """All seeds together: prompts are drawn, the seeds' songs of a prompt stay together."""
    axes = list(dict.fromkeys(axis["axis"] for report in reports.values() for axis in report["axes"]))
    found = [axis for report in reports.values() for axis in report["axes"]]
    mined = {axis["axis"] for axis in found if axis["role"] == "mined"}
    pairs = [
        PairedSample(
            sample_id=f"{pair['sample_id']}/{seed}",
            prompt_id=pair["prompt_id"],
            group=pair["group"],
            baseline=pair["baseline"],
            aligned=pair["aligned"],
        )
        for seed, report in reports.items()
        for pair in report["samples"]
    ]
    together = effects(pairs, mined, axes, resamples)
    changes = np.array([standardised_change(pair, together) for pair in pairs])
    mean = paired_effect(np.zeros_like(changes), changes, [pair.group for pair in pairs], resamples=resamples)

    def seeds(axis: str, direction: str) -> int:
        return sum(each["axis"] == axis and each["direction"] == direction for each in found)

    return {
        "prompts": mean.clusters,
        "songs": mean.count,
        "mined axes, standard deviations": rounded({"mean": mean.mean, "low": mean.low, "high": mean.high}),
        "axes": {
            a.axis: rounded({"role": a.role, "base": a.baseline_mean, "aligned": a.aligned_mean})
            | _numbers(a.effect)
            | {"seeds_better": seeds(a.axis, "better"), "seeds_worse": seeds(a.axis, "worse")}
            for a in together
        },
    }


def _numbers(effect: Effect) -> dict[str, Any]:
    numbers = {
        "mean": effect.mean, "low": effect.low, "high": effect.high, "effect_size": effect.effect_size,
        "direction": effect.direction,
    }  # fmt: skip
    return rounded(numbers)


def markdown(result: Mapping[str, Any]) -> str:
    """The pooled axes as a table."""
    count = len(result["seeds"])
    head = ["axis", "", "base", "aligned", "change", "95 % interval", f"better / worse, of {count} seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for axis, row in result["pooled"]["axes"].items():
        bold = "**" if row["direction"] != "unclear" else ""
        cells = [
            axis, row["role"], f"{row['base']:.3f}", f"{row['aligned']:.3f}", f"{bold}{row['mean']:+.3f}{bold}",
            f"{row['low']:+.3f} … {row['high']:+.3f}", f"{row['seeds_better']} / {row['seeds_worse']}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench_demo"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="key=value for the preset")
    parser.add_argument("--table", action="store_true", help="print the pooled axes as Markdown")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folders = {seed: args.out / f"seed-{seed}" for seed in args.seeds}
    for seed, folder in folders.items():
        run(seed, folder, args.overrides)
    reports = {seed: read_json(folder / "report" / "report.json") for seed, folder in folders.items()}
    result = {
        "overrides": args.overrides,
        "pooled": pooled(reports),
        "seeds": {
            seed: one(reports[seed], read_json(folder / "manifest.json")) | rounded(total(costs(folder)))
            for seed, folder in folders.items()
        },
    }
    print(markdown(result) if args.table else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
