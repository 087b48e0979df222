"""Measures objectives in worlds whose best policy is known in closed form. Table and JSON out.

    python tools/bench_toy.py [--settings plane peak --methods dpo@1 crpo@1 --seeds 0 1 2]
    python tools/bench_toy.py --check            # the orderings that have to hold; exit code 1 if one does not
    python tools/bench_toy.py --compare dpo crpo --picture frontier.svg

Every (setting, method, seed) is one file under --out, and a run with a file is not repeated. A method is a family
and its beta in nats, the coefficient of the KL term whose optimum is known. The objectives take means over elements
and multiply them by half of beta, so that

    beta of DPO = 2 dim · nats,     weight of an anchor = dim · (weight of the summed error).

See docs/theory/objectives.md.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.runs import read_json, write_json
from tools.bench.measure import round_values
from tools.bench.toy import Budget, Run, measure_policies, train_policies
from tools.bench.toy_methods import CHECK_METHODS, FAMILIES, METHODS, PLANE, SETTINGS, Setting
from tools.bench.toy_plot import Panel, panels_svg

COLUMNS = {
    "reward": "reward",
    "kl_reference": "KL ref",
    "kl_optimum": "KL opt",
    "efficiency": "eff",
    "velocity_error": "dv",
    "winner_change": "a_w",
    "loser_change": "a_l",
}
QUICK_BUDGET = Budget(steps=1000, width=64)


def build_run(method: str, setting: Setting, seed: int) -> Run:
    """The run of a method, which is named family@nats."""
    name, _, nats = method.partition("@")
    if name not in FAMILIES or not nats:
        raise SystemExit(f"{method}: write family@nats with a family of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    return Run(
        objective=family.build(setting.world, float(nats)),
        seed=seed,
        density=family.density,
        soft=family.soft,
        flip_share=setting.flip_share,
    )


def results(
    out: Path, setting: str, methods: Sequence[str], seeds: Sequence[int], budget: Budget, stack: int
) -> dict[str, list[dict[str, Any]]]:
    """By method, one result a seed; missing results are computed and written, `stack` runs at a time."""
    all_tasks = [(method, seed) for method in methods for seed in seeds]
    paths = {task: out / setting / f"{task[0]}-{task[1]}.json" for task in all_tasks}
    open_tasks = [task for task in all_tasks if not paths[task].exists()]
    for first in range(0, len(open_tasks), stack):
        tasks = open_tasks[first : first + stack]
        t_start = time.perf_counter()
        runs = [build_run(method, SETTINGS[setting], seed) for method, seed in tasks]
        stack_budget = replace(budget, batch=SETTINGS[setting].batch)
        policies = train_policies(SETTINGS[setting].world, runs, stack_budget)
        measurements = measure_policies(SETTINGS[setting].world, policies, len(runs))
        seconds = (time.perf_counter() - t_start) / len(tasks)
        for (method, seed), run, numbers in zip(tasks, runs, measurements, strict=True):
            details = {"objective": repr(run.objective), **asdict(stack_budget), "seconds": seconds}
            row = round_values({"method": method, "seed": seed, **numbers, **details})
            write_json(paths[method, seed], {k: None if v != v else v for k, v in row.items()})
            print(f"{setting} {method} seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return {method: [read_json(paths[method, seed]) for seed in seeds] for method in methods}


def column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One value a seed, NaN for a run that diverged."""
    return np.array([math.nan if row[name] is None else row[name] for row in rows], dtype=float)


def methods_table(rows_by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A table of means over seeds, and of the standard deviation of the efficiency."""
    lines = [f"{'method':<22}" + "".join(f"{title:>9}" for title in COLUMNS.values()) + f"{'± eff':>8}"]
    for method, rows in rows_by_method.items():
        means = "".join(f"{column(rows, name).mean():>9.3f}" for name in COLUMNS)
        spread = column(rows, "efficiency").std(ddof=1) if len(rows) > 1 else math.nan
        lines.append(f"{method:<22}{means}{spread:>8.3f}")
    return "\n".join(lines)


def violations(rows_by_setting: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """The known orderings that do not hold for means over seeds."""

    def mean(method: str, name: str, setting: str = "plane") -> float:
        return float(column(rows_by_setting[setting][method], name).mean())

    sweep = [mean(f"dpo@{nats}", "kl_reference") for nats in ("0.25", "1", "2", "5")]
    blown_up = mean("dpo-theory@1", "kl_reference")
    start = PLANE.reference.mean_reward(PLANE.reward)
    claims = {
        "regression on rewards is efficient: rwr eff > 0.97": mean("rwr@1", "efficiency") > 0.97,
        "and finds the optimum: rwr KL opt < 0.08": mean("rwr@1", "kl_optimum") < 0.08,
        "nft eff > 0.9": mean("nft@1", "efficiency") > 0.9,
        "nft a_w < 0.1": mean("nft@1", "winner_change") < 0.1,
        "plain dpo wastes: eff < 0.7": mean("dpo@1", "efficiency") < 0.7,
        "and loses its winners: a_w > 0": mean("dpo@1", "winner_change") > 0,
        "the anchor mends both: crpo eff > 0.85": mean("crpo@1", "efficiency") > 0.85,
        "crpo a_w <= 0": mean("crpo@1", "winner_change") <= 0,
        "so does the safeguard: sdpo a_w <= 0": mean("sdpo.9@1", "winner_change") <= 0,
        "sdpo eff > dpo eff": mean("sdpo.9@1", "efficiency") > mean("dpo@1", "efficiency"),
        "weight and safeguard mend them further out: guarded eff > 0.9": mean("guarded@0.5", "efficiency")
        > 0.9,
        "and KL opt < half of dpo's": mean("guarded@0.5", "kl_optimum") < mean("dpo@1", "kl_optimum") / 2,
        "(1-t)² blows up: KL ref > 10 or diverged": not blown_up <= 10,
        "a larger beta stays closer": sweep == sorted(sweep, reverse=True),
        "flipped labels teach the opposite": mean("dpo@1", "reward", "flipped")
        < start
        < mean("dpo@1", "reward"),
    }
    return [claim for claim, holds in claims.items() if not holds]


def at_equal_kl(rows: Sequence[Mapping[str, Any]], kl: float, name: str) -> float:
    """A column interpolated at one KL from the reference, from one seed's runs at several betas; NaN outside."""
    points = sorted(zip(column(rows, "kl_reference"), column(rows, name), strict=True))
    x, y = np.array([point for point in points if point[0] > 0.005 and math.isfinite(point[1])]).T
    return float(np.interp(math.log(kl), np.log(x), y, left=math.nan, right=math.nan))


def compare_families(
    rows_by_method: Mapping[str, Sequence[Mapping[str, Any]]],
    families: Sequence[str],
    levels: Sequence[float],
) -> dict[str, dict[float, list[tuple[float, float]]]]:
    """Family -> KL from the reference -> (efficiency, KL to the optimum) of each seed."""
    comparison: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for family in families:
        rows = [
            row
            for method, group in rows_by_method.items()
            if method.partition("@")[0] == family
            for row in group
        ]
        seeds = sorted({row["seed"] for row in rows})
        by_seed = [[row for row in rows if row["seed"] == seed] for seed in seeds]
        comparison[family] = {
            kl: [(at_equal_kl(r, kl, "efficiency"), at_equal_kl(r, kl, "kl_optimum")) for r in by_seed]
            for kl in levels
        }
    return comparison


def comparison_table(comparison: Mapping[str, Mapping[float, Sequence[tuple[float, float]]]]) -> str:
    """Mean ± standard deviation of the efficiency, and the mean KL to the optimum, at each KL."""
    levels = list(next(iter(comparison.values())))
    lines = [f"{'at KL ref =':<22}" + "".join(f"{kl:>22g}" for kl in levels)]
    for family, points in comparison.items():
        cells = []
        for kl in levels:
            (eff, optimum), spread = (
                np.mean(points[kl], 0),
                np.std(points[kl], 0, ddof=min(1, len(points[kl]) - 1)),
            )
            cells.append("-" if math.isnan(eff) else f"{eff:.3f} ± {spread[0]:.3f} ({optimum:.3f})")
        lines.append(f"{family:<22}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def frontier_svg(
    rows_by_setting: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], families: Sequence[str]
) -> str:
    """The plot of means over seeds at each beta: efficiency and KL to the optimum of every setting."""

    def line(
        rows: Mapping[str, Sequence[Mapping[str, Any]]], family: str, name: str
    ) -> list[tuple[float, float]]:
        points = [
            (float(column(group, "kl_reference").mean()), float(column(group, name).mean()))
            for method, group in rows.items()
            if method.partition("@")[0] == family
        ]
        return sorted(points)

    measures = {
        "efficiency": ("efficiency", (0.5, 1.0, 0.1)),
        "kl_optimum": ("KL to the optimum", (0.0, 1.0, 0.2)),
    }
    return panels_svg(
        [
            [
                Panel(f"{setting}: {title}", {family: line(rows, family, name) for family in families}, scale)
                for name, (title, scale) in measures.items()
            ]
            for setting, rows in rows_by_setting.items()
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["plane"])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        help="family@nats; families are in tools/bench/toy_methods.py",
    )
    parser.add_argument("--compare", nargs="+", choices=FAMILIES, metavar="FAMILY", help="at equal KL")
    parser.add_argument("--levels", nargs="+", type=float, default=[0.1, 0.15, 0.3, 0.45])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--quick", action="store_true", help="half the steps, small networks: for comparisons"
    )
    parser.add_argument("--steps", type=int, help="of training, instead of 2,000")
    parser.add_argument(
        "--check", action="store_true", help="run what the known orderings need; 1 if one fails"
    )
    parser.add_argument("--picture", type=Path, help="curves over KL as SVG, for --compare")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"))
    parser.add_argument("--stack", type=int, default=6, help="runs trained side by side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    budget, out = (QUICK_BUDGET, args.out / "quick") if args.quick else (Budget(), args.out)
    if args.steps:
        budget, out = replace(budget, steps=args.steps), out / f"{args.steps}-steps"
    methods_by_setting = {setting: tuple(args.methods) for setting in args.settings}
    if args.check:
        methods_by_setting = CHECK_METHODS
    if args.compare:
        sweep = tuple(f"{name}@{nats:g}" for name in args.compare for nats in FAMILIES[name].betas)
        methods_by_setting = dict.fromkeys(args.settings, sweep)
    rows_by_setting = {
        s: results(out, s, methods, args.seeds, budget, args.stack)
        for s, methods in methods_by_setting.items()
    }
    for setting, rows in rows_by_setting.items():
        print(f"{setting}\n{methods_table(rows)}")
        if args.compare:
            comparison = compare_families(rows, args.compare, args.levels)
            print(comparison_table(comparison))
    if args.picture and args.compare:
        args.picture.write_text(frontier_svg(rows_by_setting, args.compare))
    wrong = violations(rows_by_setting) if args.check else []
    for claim in wrong:
        print(f"does not hold: {claim}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
