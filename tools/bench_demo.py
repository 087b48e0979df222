"""Measures over several seeds how the demo changes each axis, and the demo's processor time and memory. JSON out.

    python tools/bench_demo.py [--seeds 0 1 2] [--out FOLDER] [--set train.train.steps=80 …] [--table]

Every seed is a run of `diffdpo demo configs/tiny/demo.yaml` in a process of its own, with its own candidates,
pairs, training and evaluation songs. A complete run is not repeated, a stopped run continues. In the pooled summary
prompts are drawn with replacement, each with its songs of all seeds: the interval is about other prompts, the count
of seeds about other seeds. CPU seconds are the sum over all attempts at a run, `peak_mb` is the largest peak.
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
from tools.bench.measure import markdown_table, peak_mib, round_values

DEMO = ROOT / "configs" / "tiny" / "demo.yaml"


def run(seed: int, folder: Path, overrides: Sequence[str]) -> None:
    """Run one seed unless its run is complete, and write the cost of the attempt beside the folder."""
    arguments = [*overrides, f"seed={seed}", f"out={folder.resolve()}"]
    with open_run(build_config(RoundRun, DEMO, arguments)):
        pass  # a folder of other settings is refused, complete or not
    if is_finished(folder):
        return
    log(f"seed {seed}")
    attempts = costs(folder)
    record = cost_file(folder)
    write_json(record, [*attempts, {}])  # stays so if this process is stopped, too: the cost is then unknown
    code, cost = run_command([sys.executable, "-m", "diffdpo", "demo", str(DEMO), *arguments])
    write_json(record, [*attempts, cost])
    if code:
        raise SystemExit(f"seed {seed}: diffdpo demo ended with exit code {code}; run this again to go on")


def run_command(command: Sequence[str]) -> tuple[int, dict[str, float]]:
    """Exit code and cost of a command that is run to its end, its child processes included."""
    t_start, peak, ended_pid = time.monotonic(), 0.0, 0
    with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as process:
        try:
            while not ended_pid:
                time.sleep(0.2)
                peak = max(peak, peak_mib(process.pid) or 0.0)
                ended_pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        except BaseException:  # this process is stopped: the run must not go on by itself
            process.terminate()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.monotonic() - t_start,
        "peak_mb": peak or usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2),
    }


def cost_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-cost.json")


def costs(folder: Path) -> list[dict[str, float]]:
    """The cost of each attempt at a run."""
    return read_json(cost_file(folder)) if cost_file(folder).is_file() else []


def total_cost(attempts: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The cost of all attempts at a run; None for each value if one attempt was not measured to its end."""
    complete = bool(attempts) and all(attempts)
    return {
        "attempts": len(attempts),
        "cpu_s": sum(attempt["cpu_s"] for attempt in attempts) if complete else None,
        "wall_s": sum(attempt["wall_s"] for attempt in attempts) if complete else None,
        "peak_mb": max(attempt["peak_mb"] for attempt in attempts) if complete else None,
    }


def seed_result(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The number of pairs of one seed, its effects with their intervals, and the rise of the winners' error."""
    round_number = manifest["best"] or manifest["rounds"]
    return {
        "pairs": report["mining"].get("pairs"),
        "winner_rise": manifest["results"][round_number - 1]["winner_rise"],
        "axes": {
            axis["axis"]: {"role": axis["role"], "direction": axis["direction"]}
            | round_values({key: axis["effect"][key] for key in ("mean", "low", "high", "effect_size")})
            for axis in report["axes"]
        },
        "witnesses": witness_numbers(report),
        "passed": report["verdict"]["passed"],
    }


def witness_numbers(report: Mapping[str, Any]) -> dict[str, str]:
    """Composites of witnesses in standard deviations of the base, change of the in-band share, N of best-of-N."""
    witnesses = report["witnesses"]
    if witnesses is None:
        return {}
    composites = witnesses["composites"]
    effects_by_name = {
        name: composites[name] for name in sorted(composites, key=lambda name: name == "W.all")
    }
    if witnesses["band"] is not None:
        effects_by_name["in-band share"] = witnesses["band"]["change"]
    numbers = {
        name: f"{effect['mean']:+.3f} ({effect['low']:+.3f} … {effect['high']:+.3f})"
        for name, effect in effects_by_name.items()
    }
    if (equivalent := witnesses["n_equivalent"]) is not None:
        value, low, high = (
            f"above {equivalent['largest']}" if n is None else f"{n:.1f}"  # JSON has no infinity
            for n in (equivalent["interval"][key] for key in ("value", "low", "high"))
        )
        numbers["as best of"] = f"{value} ({low} … {high})"
    return numbers


def pool_seeds(reports: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Effects over all seeds. Intervals are over prompts, each with its songs of all seeds."""
    axes = list(dict.fromkeys(axis["axis"] for report in reports.values() for axis in report["axes"]))
    seed_axes = [axis for report in reports.values() for axis in report["axes"]]
    mined_axes = {axis["axis"] for axis in seed_axes if axis["role"] == "mined"}
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
    watched_axes = {axis["axis"] for axis in seed_axes if axis["role"] == "diagnosis"}
    axis_effects = effects(pairs, mined_axes, axes, watched_axes)
    changes = np.array([standardised_change(pair, axis_effects) for pair in pairs])
    mean = paired_effect(np.zeros_like(changes), changes, [pair.group for pair in pairs])

    def seeds(axis: str, direction: str) -> int:
        return sum(axis_row["axis"] == axis and axis_row["direction"] == direction for axis_row in seed_axes)

    return {
        "prompts": mean.clusters,
        "songs": mean.count,
        "mined axes, standard deviations": round_values(
            {"mean": mean.mean, "low": mean.low, "high": mean.high}
        ),
        "axes": {
            a.axis: round_values({"role": a.role, "base": a.baseline_mean, "aligned": a.aligned_mean})
            | _numbers(a.effect)
            | {"seeds_better": seeds(a.axis, "better"), "seeds_worse": seeds(a.axis, "worse")}
            for a in axis_effects
        },
    }


def _numbers(effect: Effect) -> dict[str, Any]:
    numbers = {
        "mean": effect.mean, "low": effect.low, "high": effect.high, "effect_size": effect.effect_size,
        "direction": effect.direction,
    }  # fmt: skip
    return round_values(numbers)


def axes_table(result: Mapping[str, Any]) -> str:
    """The effects over all seeds in Markdown, a row an axis."""
    count = len(result["seeds"])
    head = ["axis", "", "base", "aligned", "change", "95 % interval", f"better / worse, of {count} seeds"]
    rows = []
    for axis, row in result["pooled"]["axes"].items():
        bold = "**" if row["direction"] != "unclear" else ""
        cells = [
            axis, row["role"], f"{row['base']:.3f}", f"{row['aligned']:.3f}", f"{bold}{row['mean']:+.3f}{bold}",
            f"{row['low']:+.3f} … {row['high']:+.3f}", f"{row['seeds_better']} / {row['seeds_worse']}",
        ]  # fmt: skip
        rows.append(cells)
    return markdown_table(head, rows)


def witness_table(result: Mapping[str, Any]) -> str:
    """What the witnesses say of each seed in Markdown, a row a seed."""
    rows = {seed: {**row["witnesses"], "verdict": row["passed"]} for seed, row in result["seeds"].items()}
    head = list(dict.fromkeys(name for row in rows.values() for name in row))
    texts = {True: "passed", False: "not passed"}
    return markdown_table(
        ["seed", *head],
        [
            [seed, *(row.get(name, "") if name != "verdict" else texts[row[name]] for name in head)]
            for seed, row in rows.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench_demo"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="key=value for the preset")
    parser.add_argument("--table", action="store_true", help="print pooled axes and witnesses as Markdown")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folders = {seed: args.out / f"seed-{seed}" for seed in args.seeds}
    for seed, folder in folders.items():
        run(seed, folder, args.overrides)
    reports = {seed: read_json(folder / "report" / "report.json") for seed, folder in folders.items()}
    result = {
        "overrides": args.overrides,
        "pooled": pool_seeds(reports),
        "seeds": {
            seed: seed_result(reports[seed], read_json(folder / "manifest.json"))
            | round_values(total_cost(costs(folder)))
            for seed, folder in folders.items()
        },
    }
    print(f"{axes_table(result)}\n\n{witness_table(result)}" if args.table else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
