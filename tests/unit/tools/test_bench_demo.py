"""What the bench of the demo says of several seeds, on reports made up for it."""

import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from diffdpo.evaluation.effects import PairedSample, effects

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("bench_demo", TOOLS / "bench_demo.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


def report(seed, changes, prompts=12, songs=2):
    """As `diffdpo evaluate` writes it: each axis changes by a number, or by one for each prompt."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(prompts):
        for k in range(songs):
            before = {axis: float(rng.normal()) for axis in changes}
            after = {
                axis: before[axis] + float(np.broadcast_to(c, prompts)[i]) for axis, c in changes.items()
            }
            pairs.append(PairedSample(f"p{i}.{k}", f"p{i}", f"g{i}", before, after))
    found = effects(pairs, [axis for axis in changes if axis != "judge"], list(changes))
    return {
        "axes": [asdict(a) | {"direction": a.effect.direction} for a in found],
        "samples": [asdict(pair) | {"change": 0.0} for pair in pairs],
        "mining": {"pairs": 30 + seed},
        "witnesses": None,
        "verdict": {"passed": seed == 0},
    }


def test_seeds_are_pooled_and_counted(bench):
    reports = {s: report(s, {"a": 1.0, "b": (s - 1) * 0.5, "judge": -0.2}) for s in range(3)}
    result = bench.pool_seeds(reports)
    assert (result["prompts"], result["songs"]) == (12, 72)
    a, b, judge = (result["axes"][axis] for axis in ("a", "b", "judge"))
    assert (a["mean"], a["low"], a["high"]) == pytest.approx((1, 1, 1))
    assert (a["direction"], a["seeds_better"], a["seeds_worse"]) == ("better", 3, 0)
    assert b["mean"] == pytest.approx(0, abs=1e-9)
    assert (b["seeds_better"], b["seeds_worse"]) == (1, 1)
    assert (judge["role"], judge["direction"], judge["seeds_worse"]) == ("judge", "worse", 3)
    spreads = {
        x: np.std([p["baseline"][x] for r in reports.values() for p in r["samples"]], ddof=1) for x in "ab"
    }
    assert result["mined axes, standard deviations"]["mean"] == pytest.approx(1 / spreads["a"] / 2, rel=1e-3)


def test_other_seeds_are_no_other_prompts(bench):
    """What a prompt does it does on every seed: three seeds know no more of other prompts than one."""
    per_prompt = np.random.default_rng(0).normal(0.3, 1, 12)
    single, three = (
        bench.pool_seeds({s: report(s, {"a": per_prompt}) for s in seeds})["axes"]["a"]
        for seeds in ([0], [0, 1, 2])
    )
    assert three["mean"] == pytest.approx(single["mean"])
    assert three["high"] - three["low"] == pytest.approx(single["high"] - single["low"], rel=0.01)


def test_a_seed_shows_the_round_that_the_report_shows(bench):
    results = [{"winner_rise": 0.01}, {"winner_rise": 0.04}]
    made = report(0, {"a": 1.0, "judge": 0.0})
    kept = bench.seed_result(made, {"best": 1, "rounds": 2, "results": results})
    assert (kept["pairs"], kept["winner_rise"]) == (30, 0.01)
    assert kept["axes"]["a"]["mean"] == pytest.approx(1.0)
    assert kept["axes"]["judge"]["role"] == "judge"
    none = bench.seed_result(made, {"best": 0, "rounds": 2, "results": results})
    assert none["winner_rise"] == 0.04


def test_witnesses_of_a_seed_are_a_row(bench):
    effect = {"mean": 0.5, "low": 0.25, "high": 0.75}
    made = report(0, {"a": 1.0}) | {
        "witnesses": {
            "composites": {"W.all": effect},
            "band": {"change": {"mean": -0.01, "low": -0.04, "high": 0.02}},
            "n_equivalent": {"interval": {"value": 3.46, "low": 1.7, "high": None}, "largest": 10},
        }
    }
    seeds = {
        seed: bench.seed_result(made, {"best": 1, "rounds": 1, "results": [{"winner_rise": 0.0}]})
        for seed, made in ((0, made), (1, report(1, {"a": 1.0})))
    }
    assert bench.witness_table({"seeds": seeds}).splitlines()[2:] == [
        "| 0 | +0.500 (+0.250 … +0.750) | -0.010 (-0.040 … +0.020) | 3.5 (1.7 … above 10) | passed |",
        "| 1 |  |  |  | not passed |",
    ]


def test_the_cost_is_that_of_all_attempts_or_unknown(bench):
    attempts = [
        {"cpu_s": 10.0, "wall_s": 20.0, "peak_mb": 300.0},
        {"cpu_s": 5.0, "wall_s": 6.0, "peak_mb": 200.0},
    ]
    assert bench.total_cost(attempts) == {"attempts": 2, "cpu_s": 15.0, "wall_s": 26.0, "peak_mb": 300.0}
    assert bench.total_cost([{}, attempts[0]])["cpu_s"] is None
    assert bench.total_cost([])["peak_mb"] is None


WORK = """
import time
held, began = bytearray(200 << 20), time.process_time()
while time.process_time() < began + 0.3:
    pass
del held
time.sleep(1)
"""


def test_a_process_is_measured_by_what_it_did(bench):
    code, took = bench.run_command([sys.executable, "-c", WORK])
    assert code == 0
    assert 0.3 <= took["cpu_s"] < 3
    assert took["wall_s"] >= 1.3
    assert 200 < took["peak_mb"] < 300
    assert bench.run_command([sys.executable, "-c", "raise SystemExit(3)"])[0] == 3
