"""Measures time and memory of `diffdpo mine` on synthetic tables, and of a baseline on rows of dicts. JSON out.

    python tools/bench_mine.py [--songs 1000000 --baseline-songs 20000 --rule best_versus_worst --folder FOLDER]

The tables have the layout of `sample` and `score`, with eight songs a prompt, eight axes and six gates a song. The
verb reads, mines and writes in a process of its own. On the smaller size both ways, columns and the baseline of
dicts (`dict_rows`), mine the same tables; their pairs and ratings are compared bit for bit, and
`dict_rows_over_columns` is the ratio of their processor seconds after importing.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from tools.bench.measure import memory_mb, round_values, run_in_process

PER_PROMPT = 8
AXES = (
    "harmony.key", "harmony.consonance", "harmony.tuning", "rhythm.pulse", "rhythm.tempo", "structure.form",
    "production.balance", "adherence.style",
)  # fmt: skip
FINGERPRINT = "0123456789abcdef"
RULE_ARGS = {"min_margin": 0.5, "min_axis_margin": -1.0}
"""Arguments of best_versus_worst; other rules run with their defaults."""
STAGES = (
    "read_scores",
    "join_scores",
    "to_mine",
    "mine_candidates",
    "rating_columns",
    "finish_pairs",
    "pair_columns",
)
"""Functions of the verb that are timed separately; writing tables is timed as `write`."""


def codes(values: list[str], places: Any) -> Any:
    """A column of text, dictionary-encoded from its distinct values and the index of each row's value."""
    import numpy as np
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(values, pa.string()))


def make_tables(folder: Path, songs: int) -> dict[str, Any]:
    """Write samples, prompts and scores in the layout of the verbs before mining."""
    from diffdpo.data.samples import sample_id

    prompts = [f"p{i:07d}" for i in range(songs // PER_PROMPT)]
    names = [sample_id(prompt, k) for prompt in prompts for k in range(PER_PROMPT)]
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    make_samples(folder / "samples", prompts, names, hashes)
    rows = make_scores(folder / "scores", prompts, hashes)
    return {"songs": len(names), "prompts": len(prompts), "score_rows": rows}


def make_samples(folder: Path, prompts: list[str], names: list[str], hashes: list[str]) -> None:
    """Write a row of samples for each name, and the prompts."""
    import numpy as np
    import pyarrow as pa

    from diffdpo.data import tables
    from diffdpo.data.samples import PROMPTS, SAMPLES

    song, zero = np.arange(len(names)), np.zeros(len(names))
    sampling = json.dumps({"steps": 12, "guidance": {"name": "cfg", "args": {"scale": 3.0}}, "batch": 16})
    sample_columns = {name: codes([""], zero) for name in SAMPLES.columns} | {
        "sample_id": names,
        "prompt_id": codes(prompts, song // PER_PROMPT),
        "group": codes([f"g{prompt}" for prompt in prompts], song // PER_PROMPT),
        "seed": zero.astype(np.int64),
        "frames": zero.astype(np.int64) + 215,
        "duration_s": zero + 10.0,
        "sampling": codes([sampling], zero),
        "sha256": hashes,
    }
    tables.replace(folder, SAMPLES, pa.table(sample_columns))
    lines = (
        json.dumps({"id": name, "text": name, "duration_s": 10.0, "group": f"g{name}"}) for name in prompts
    )
    (folder / PROMPTS).write_text("".join(f"{line}\n" for line in lines))


def make_scores(folder: Path, prompts: list[str], hashes: list[str]) -> int:
    """Write scores: for each song a quality common to all axes plus independent noise, and gates that pass.

    Returns the number of rows.
    """
    import numpy as np
    import pyarrow as pa

    from diffdpo.data import tables
    from diffdpo.data.scores import FULL_SONG, GATES, NO_PROMPT, SCORES, prompt_key
    from diffdpo.runs import finish
    from diffdpo.scorers.gates import LIMITS
    from diffdpo.types import Prompt

    axes = [*LIMITS, *AXES]
    scorers = sorted({axis.split(".")[0] for axis in AXES} | {GATES})
    generator = np.random.default_rng(0)
    values = generator.normal(size=(len(hashes), len(axes))) + 1.5 * generator.normal(size=(len(hashes), 1))
    values[:, : len(LIMITS)] = [min(max(low, 1.0), high) for low, high in LIMITS.values()]
    song = np.repeat(np.argsort(hashes), len(axes))  # as a compacted table is ordered
    axis, zero = np.tile(np.arange(len(axes)), len(hashes)), np.zeros(len(song))
    scorer = np.array([scorers.index(name.split(".")[0] if "." in name else GATES) for name in axes])
    with_prompt = np.array([name.startswith("adherence") for name in axes])[axis]
    keys = [NO_PROMPT, *(prompt_key(Prompt(id=name, text=name)) for name in prompts)]
    rows = {
        "sha256": codes(hashes, song),
        "preprocessing": codes(["1"], zero),
        "scorer": codes(scorers, scorer[axis]),
        "fingerprint": codes([FINGERPRINT], zero),
        "prompt": codes(keys, np.where(with_prompt, song // PER_PROMPT + 1, 0)),
        "axis": codes(axes, axis),
        "window": codes([FULL_SONG], zero),
        "value": values[song, axis],
    }
    tables.replace(folder, SCORES, pa.table(rows))
    finish(folder, scorers=dict.fromkeys(scorers, FINGERPRINT))
    return len(song)


def mine_columns(folder: Path, rule: str) -> dict[str, Any]:
    """Run the verb; its seconds, and those of each stage."""
    t_start = time.process_time(), time.perf_counter()
    from diffdpo.recipes import mine
    from diffdpo.recipes.mine import MineRun
    from diffdpo.registry import Choice

    stages = {"import": {"processor_s": time.process_time() - t_start[0]}}

    def timer(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time(), time.perf_counter()
            result = function(*args, **kwargs)
            seconds = stages.setdefault(name, {"processor_s": 0.0, "wall_s": 0.0})
            seconds["processor_s"] += time.process_time() - start[0]
            seconds["wall_s"] += time.perf_counter() - start[1]
            return result

        return call

    for name in STAGES:
        setattr(mine, name, timer(name, getattr(mine, name)))
    mine.tables.replace = timer("write", mine.tables.replace)
    cfg = MineRun(
        samples=[str(folder / "samples")],
        scores=str(folder / "scores"),
        out=str(folder / f"mined-{rule}"),
        axes=list(AXES),
        rule=Choice(rule, dict(RULE_ARGS) if rule == "best_versus_worst" else {}),
        soft_label_temperature=1.0,
    )
    start = time.process_time(), time.perf_counter()
    mine.run(cfg)
    result = {
        "mine_processor_s": time.process_time() - start[0],
        "mine_wall_s": time.perf_counter() - start[1],
    }
    return result | {"stages": {name: round_values(seconds) for name, seconds in stages.items()}}


def mine_dicts(folder: Path, rule: str) -> dict[str, Any]:
    """Run the baseline, and its seconds."""
    from tools.bench import dict_mining

    start = time.process_time(), time.perf_counter()
    dict_mining.mine(folder / "samples", folder / "scores", folder / "dicts", AXES, RULE_ARGS)
    return {"mine_processor_s": time.process_time() - start[0], "mine_wall_s": time.perf_counter() - start[1]}


def compare_outputs(folder: Path, rule: str) -> dict[str, Any]:
    """Whether the verb and the baseline wrote the same pairs, margins and ratings."""
    import pyarrow.parquet as pq

    from diffdpo.data import tables
    from diffdpo.data.pairs import PAIRS
    from diffdpo.data.ratings import RATINGS

    out = folder / f"mined-{rule}"
    rows = tables.read_rows(out, PAIRS)
    pairs_of_dicts = pq.read_table(folder / "dicts" / "pairs.parquet").to_pylist()
    pairs = [(row.winner, row.loser, dict(row.margins)) for row in rows]
    ratings = {row.sample_id: row.rating for row in tables.read_rows(out, RATINGS)}
    ratings_of_dicts = pq.read_table(folder / "dicts" / "ratings.parquet").to_pylist()
    return {
        "pairs": len(rows),
        "same_pairs": pairs
        == [(row["winner"], row["loser"], json.loads(row["margins"])) for row in pairs_of_dicts],
        "same_ratings": ratings == {row["sample_id"]: row["rating"] for row in ratings_of_dicts},
    }


STEPS = {"columns": mine_columns, "dict_rows": mine_dicts, "compare": compare_outputs}


def run_step(args: argparse.Namespace) -> dict[str, Any]:
    """The result of one step with its seconds and memory, in this process."""
    t_start = time.perf_counter()
    if args.step == "make":
        return make_tables(args.folder, args.songs)
    result = STEPS[args.step](args.folder, args.rule)
    total = {"processor_s": time.process_time(), "wall_s": time.perf_counter() - t_start}
    return round_values({**result, **total, "peak_rss_mb": memory_mb()["peak_rss_mb"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--songs", type=int, default=1_000_000, help="songs of the large tables; 0 leaves them out"
    )
    parser.add_argument(
        "--baseline-songs", type=int, default=20_000, help="songs for the comparison with dicts"
    )
    parser.add_argument(
        "--rule", default="best_versus_worst", help="dicts are compared for the default alone"
    )
    parser.add_argument("--folder", type=Path, help="where the tables go; a temporary folder by default")
    parser.add_argument("--step", choices=("make", *STEPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(run_step(args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        report: dict[str, Any] = {"axes": len(AXES), "rule": args.rule}
        for name, songs in (("large", args.songs), ("small", args.baseline_songs)):
            if songs:
                options = ("--folder", folder / name, "--rule", args.rule)
                report[name] = run_in_process(__file__, "--step", "make", "--songs", songs, *options)
                report[name]["columns"] = run_in_process(__file__, "--step", "columns", *options)
        if args.baseline_songs and args.rule == "best_versus_worst":
            small = report["small"]
            for name in ("dict_rows", "compare"):
                small[name] = run_in_process(__file__, "--step", name, *options)
            ratio = small["dict_rows"]["mine_processor_s"] / small["columns"]["mine_processor_s"]
            small["dict_rows_over_columns"] = float(f"{ratio:.3g}")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
