"""The frontier: what choosing and training gain on witnesses, at which divergence from the base. JSON out.

    diffdpo demo out=runs/demo
    python tools/bench_frontier.py --run runs/demo [--out FOLDER] [--plan quick|full] [--only NAME …] [--table]

`quick` takes what the run has: best-of-N of its candidates, which are on the mining prompts, and its aligned model.
`full` has `--candidates` songs of the base for every evaluation prompt, every objective on songs at several
strengths of its adapter, more rounds, and the best of four songs of the aligned model; it takes hours. Every
point is added to `FOLDER/frontier.json` when it is measured, and not measured again. `--only` measures some
models or points of the plan; several processes may add to one file.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.data.samples import open_samples
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.evaluation.best_of_n import best_of_n_kl
from diffdpo.evaluation.composites import CompositeScale, fit_composites
from diffdpo.evaluation.real_songs import read_table
from diffdpo.evaluation.witness_report import BAND_GROUP, FORM_WITNESS
from diffdpo.progress import log
from diffdpo.recipes.score import first_songs
from tools.bench.aligned_models import (
    AlignedModel,
    aligned_choice,
    check_source,
    compare_model,
    report_round,
    round_config,
    run_model,
    sample_songs,
    score_songs,
)
from tools.bench.frontier import SongSet, best_of_n_equivalent, best_songs, even_songs, measure_songs
from tools.bench.frontier_file import Point, add_point, frontier_table, read_points
from tools.bench.frontier_models import frontier_models

STRENGTHS = (0.5, 1.0, 2.0)
"""Strengths of each trained adapter: several points of one training."""
CHOSEN_FROM = 4
"""Songs of the aligned model that the best is chosen of."""


@dataclass(frozen=True)
class Bench:
    """A finished run, and the folder of the bench."""

    run: Path
    out: Path

    @property
    def file(self) -> Path:
        """The file of points."""
        return self.out / "frontier.json"

    def base(self) -> SongSet:
        """The base's evaluation songs, which the composites' scale is of."""
        return read_songs(self.run / "baseline", self.run / "scores")

    def scale(self) -> CompositeScale:
        """The scale of composites."""
        base = self.base()
        return fit_composites(base.scores, [FORM_WITNESS] if FORM_WITNESS in base.scores else [])


Stage = tuple[str, Callable[[], Point]]
"""The name of a point, and how it is measured."""


def read_songs(folder: Path, scores: Path, per_prompt: int = 0) -> SongSet:
    """The first songs of each prompt, 0 for all, that have scores; of equal weight within their prompt."""
    samples = open_samples(folder)
    songs = join_scores(read_scores(scores), samples, samples.prompts())
    chosen_ids = {row.sample_id for row in first_songs(samples.rows(), per_prompt or len(songs.sample_ids))}
    places = [place for place, name in enumerate(songs.sample_ids) if name in chosen_ids]
    columns = {axis: songs.values[places, column] for column, axis in enumerate(songs.axes)}
    groups = [songs.groups[place] for place in places]
    return even_songs(groups, {axis: v for axis, v in columns.items() if np.isfinite(v).all()})


def measure(bench: Bench, songs: SongSet, base: SongSet) -> dict[str, Any]:
    """The numbers of songs beside the base's of the same prompts."""
    return measure_songs(songs, base, bench.scale(), read_table().of_group(BAND_GROUP))


def best_of_n_stages(bench: Bench, label: str, songs: Callable[[], SongSet], count: int) -> Iterator[Stage]:
    """Best-of-N of the base for N of 1, 2, 4 … up to the number of songs of a prompt."""
    for n in [n for n in (1, 2, 4, 8, 16, 32, 64) if n < count] + [count]:

        def point(n: int = n) -> Point:
            base = songs()
            return {
                "name": f"best of {n}{label}", "method": "best-of-N", "n": n, "kl": best_of_n_kl(n),
                **measure(bench, best_songs(base, n), base), "verdict": None,
            }  # fmt: skip

        yield f"best of {n}{label}", point


def model_point(
    bench: Bench,
    model: AlignedModel,
    run: Path,
    strength: float = 1.0,
    candidates: Callable[[], SongSet] | None = None,
) -> Point:
    """The point of a run's aligned model; at another strength of its adapter with songs of its own.

    `candidates` are the base's songs of the same prompts, with which it is as good as the best of so many.
    """
    folder = bench.out / f"{model.name}-{strength:g}"
    songs, scores = report_round(run) / "aligned", run / "scores"
    if strength != 1:
        count = round_config(run).evaluation_samples
        songs = sample_songs(run, aligned_choice(run, strength), folder / "songs", count)
        scores = score_songs(run, [run / "baseline", songs], folder / "scores")
    report = compare_model(run, folder / "verdict", songs, scores)
    verdict = report["verdict"]
    drift = verdict["numbers"].get("drift")
    return {
        "name": point_name(model, strength), "method": model.method, "n": None,
        "kl": drift["kl"] if drift else None,
        **measure(bench, read_songs(songs, scores), bench.base()),
        "equivalent": equivalent(bench, read_songs(songs, scores), candidates),
        "verdict": {key: verdict[key] for key in ("passed", "reasons", "numbers")},
    }  # fmt: skip


def equivalent(bench: Bench, songs: SongSet, candidates: Callable[[], SongSet] | None) -> str | None:
    """The N of best-of-N that gains as much, if there are candidates of the same prompts."""
    return candidates and best_of_n_equivalent(songs, bench.base(), candidates(), bench.scale())


def point_name(model: AlignedModel, strength: float) -> str:
    return model.name if strength == 1 else f"{model.name}, strength {strength:g}"


def chosen_point(bench: Bench, name: str, candidates: Callable[[], SongSet]) -> Point:
    """The best of four songs of the run's aligned model; divergences of training and choice are added."""
    count = 2 * CHOSEN_FROM
    songs = sample_songs(bench.run, aligned_choice(bench.run), bench.out / "aligned-songs", count)
    scores = score_songs(bench.run, [songs], bench.out / "aligned-scores")
    best = best_songs(read_songs(songs, scores), CHOSEN_FROM)
    drift = compare_model(bench.run, bench.out / "aligned-1" / "verdict")["verdict"]["numbers"].get("drift")
    return {
        "name": name, "method": "aligned, then best-of-N", "n": CHOSEN_FROM,
        "kl": drift["kl"] + best_of_n_kl(CHOSEN_FROM) if drift else None,
        **measure(bench, best, candidates()), "verdict": None,
        "equivalent": best_of_n_equivalent(best, candidates(), candidates(), bench.scale()),
    }  # fmt: skip


def stages(bench: Bench, plan: str, candidates: int) -> Iterator[Stage]:
    """The points of a plan, the cheap ones first."""
    aligned = AlignedModel("aligned", "the run's recipe")
    if plan == "quick":
        folder = bench.run / "round-1" / "candidates"
        cfg, scores = round_config(bench.run), bench.run / "scores"
        count = cfg.judge_candidates or cfg.candidates  # the others have no scores by witnesses
        label = " (mining prompts)"
        yield from best_of_n_stages(bench, label, lambda: read_songs(folder, scores, count), count)
        yield aligned.name, lambda: model_point(bench, aligned, bench.run)
        return
    songs = candidate_songs(bench, candidates)
    yield from best_of_n_stages(bench, f" of {candidates}", songs, candidates)
    for strength in STRENGTHS:
        yield from model_stages(bench, aligned, strength, songs, bench.run)
    name = f"aligned, best of {CHOSEN_FROM}"
    yield name, lambda: chosen_point(bench, name, songs)
    for model in frontier_models(rounds=(2, 3)):
        for strength in STRENGTHS if "rounds" not in model.changes else (1.0,):
            yield from model_stages(bench, model, strength, songs)


def model_stages(
    bench: Bench,
    model: AlignedModel,
    strength: float,
    candidates: Callable[[], SongSet],
    run: Path | None = None,
) -> Iterator[Stage]:
    """The stage of a model at a strength; the model is trained unless its run is given."""

    def point() -> Point:
        folder = run or run_model(model, bench.run, bench.out / model.name)
        return model_point(bench, model, folder, strength, candidates)

    yield point_name(model, strength), point


def candidate_songs(bench: Bench, count: int) -> Callable[[], SongSet]:
    """Songs of the base for every evaluation prompt, sampled and scored when they are needed."""

    def songs() -> SongSet:
        choice = round_config(bench.run).model
        folder = sample_songs(bench.run, choice, bench.out / "candidates", count)
        return read_songs(folder, score_songs(bench.run, [folder], bench.out / "candidate-scores"))

    return songs


def run_stages(bench: Bench, plan: Iterator[Stage]) -> list[Mapping[str, Any]]:
    """Measure the points of a plan that the file lacks; all points of the file."""
    for name, measure_point in plan:
        if name in {point["name"] for point in read_points(bench.file)}:
            continue
        log(f"point {name}")
        add_point(bench.file, measure_point())
    return list(read_points(bench.file))


def select_stages(plan: Iterator[Stage], names: Sequence[str]) -> Iterator[Stage]:
    """The points of these names or of models of these names at any strength; all if there are no names."""
    return (stage for stage in plan if not names or {stage[0], stage[0].split(", ")[0]} & set(names))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run of the demo")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_frontier"))
    parser.add_argument("--plan", choices=("quick", "full"), default="quick")
    parser.add_argument(
        "--candidates", type=int, default=16, help="songs of the base for a prompt, for `full`"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], help="models or points of the plan; all if not given"
    )
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    args = parser.parse_args(arguments)
    check_source(args.run)
    bench = Bench(args.run, args.out)
    points = run_stages(bench, select_stages(stages(bench, args.plan, args.candidates), args.only))
    print(frontier_table(points) if args.table else json.dumps({"points": points}, indent=1))


if __name__ == "__main__":
    main()
