"""Measures how often, and how soon, the tests of `diffdpo monitor` see a change of listeners. JSON out.

    python tools/bench_drift.py [--seeds 60] [--votes 6000] [--table]

Songs have 16 features; the reward model was fitted to 2,000 votes before the stream. 1,000 votes are the reference,
and at vote 2,000 the taste turns by 60 degrees at once, or over 2,000 votes, or the songs change in what the reward
model ignores, or nothing changes. Of each test: the share of seeds in which it rings after the change (an alarm
before it counts as false), the median delay in votes, and the share that rings although nothing changes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import numpy as np

from diffdpo.preferences.agreement import wilson_share
from diffdpo.preferences.taste_drift import DriftConfig
from tools.bench.measure import markdown_table
from tools.bench.taste_world import CHANGES, DRIFT, Change, make_stream, run_tests


def measure(change: Change, seeds: int, votes: int, cfg: DriftConfig) -> dict[str, dict[str, Any]]:
    """For each test the share of seeds in which it rings, with Wilson's interval, and the median delay."""
    results = [run_tests(make_stream(change, votes, seed), cfg).first for seed in range(seeds)]
    start = cfg.reference if change == "none" else DRIFT
    table = {}
    for test in results[0]:
        places = [result[test] for result in results]
        delays = [place - start + 1 for place in places if place is not None and place >= start]
        share = wilson_share(len(delays), seeds)
        table[test] = {
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "delay": float(np.median(delays)) if delays else None,
            "early": sum(place is not None and place < start for place in places) / seeds,
        }
    return table


def drift_table(result: dict[str, Any]) -> str:
    """The result in Markdown: share of seeds / median delay."""
    head = ["test", "taste turned at once", "over 2,000 votes", "other songs", "nothing changed"]
    rows = []
    for test in result["none"]:
        cells = [test]
        for change in CHANGES:
            entry = result[change][test]
            delay = "" if entry["delay"] is None or change == "none" else f" / {entry['delay']:.0f}"
            cells.append(f"{entry['share']:.2f}{delay}")
        rows.append(cells)
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--votes", type=int, default=6000)
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON")
    args = parser.parse_args()
    cfg = DriftConfig(horizon=args.votes - DriftConfig.reference)
    result: dict[str, Any] = {"seeds": args.seeds, "votes": args.votes}
    for change in CHANGES:
        result[change] = measure(change, args.seeds, args.votes, cfg)
        print(f"{change}: done", file=sys.stderr, flush=True)
    print(drift_table(result) if args.table else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
