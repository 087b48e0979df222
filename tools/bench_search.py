"""What alignment while sampling gains on witnesses, at which cost: search methods and the aligned model. JSON out.

    diffdpo demo out=runs/demo
    python tools/bench_search.py --run runs/demo [--out FOLDER] [--plan FILE] [--table] [--plot FILE.svg]

All searches look for the same reward, key, tuning, pulse and form alike, on the evaluation prompts of the run. The
winners are measured by the witnesses of the frontier, which take no part in any search. Costs are in songs' worth:
network evaluations over those of a plain song. The best of N, of any model, is by exact order statistics over the
songs of its largest budget; other methods are run. Each point is added to `FOLDER/frontier.json` when it is
measured, and not measured again, so a stopped run goes on. The plan is a list of points, by default
`tools/bench/search_plan.yaml`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.data.prompts import read_prompts
from diffdpo.data.samples import Samples, open_samples, write_prompts
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.evaluation.best_of_n import best_of_n_kl, best_of_n_weights
from diffdpo.evaluation.composites import CompositeScale, fit_composites
from diffdpo.evaluation.real_songs import read_table
from diffdpo.evaluation.witness_report import BAND_GROUP, FORM_WITNESS
from diffdpo.progress import log
from diffdpo.recipes import score, search
from diffdpo.recipes.search import SearchRun
from diffdpo.recipes.search_results import search_rows
from diffdpo.recipes.winners import copy_winners
from diffdpo.registry import Choice
from diffdpo.runs import MANIFEST, atomic_write, read_json
from diffdpo.search.config import SearchConfig
from diffdpo.search.reward import RewardConfig
from diffdpo.statistics import estimate_mean
from tools.bench.aligned_models import aligned_choice, check_source, round_config
from tools.bench.frontier import SongSet, as_value, even_songs, measure_songs
from tools.bench.frontier_file import COMPOSITES, Point, add_point, read_points
from tools.bench.measure import markdown_table, round_values
from tools.bench.search_files import SearchFiles, fill_names
from tools.bench.search_plan import Entry, read_plan, sampling_parts, song_source
from tools.bench.search_plot import search_svg

ValuesOf = Callable[[SongSet], np.ndarray]
"""A value of each song of a set."""
WITNESSES = ("notes", "beats", "form", "musicnn", "tags", "second_critic", "adherence")


@dataclass(frozen=True)
class SearchBench:
    """A finished run of the demo, and the folder of the bench."""

    run: Path
    out: Path
    songs: dict[str, SongSet] = field(default_factory=dict)
    """Songs that were read, by folder."""

    @property
    def file(self) -> Path:
        """The file of points."""
        return self.out / "frontier.json"

    def scale(self) -> CompositeScale:
        """The scale of composites: of the base's evaluation songs."""
        base = read_songs(self.run / "baseline", self.run / "scores")
        return fit_composites(base.scores, [FORM_WITNESS])

    @property
    def files(self) -> SearchFiles:
        """The files that entries name."""
        return SearchFiles(self.run, self.out / "files")

    def prompts(self, entry: Entry) -> Path:
        """A file of the evaluation prompts of an entry."""
        source = Path(round_config(self.run).evaluation_prompts)
        prompts = read_prompts(source)
        count = entry.prompts or len(prompts)
        if count >= len(prompts) and not entry.seconds:
            return source
        path = self.out / f"prompts-{count}{f'-{entry.seconds:g}s' if entry.seconds else ''}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        prompts = [
            replace(prompt, duration_s=entry.seconds or prompt.duration_s) for prompt in prompts[:count]
        ]
        write_prompts(path, prompts, {})
        return path

    def search(self, entry: Entry, budget: int) -> Path:
        """The folder of a finished search."""
        cfg = round_config(self.run)
        folder = f"{entry.name}-{budget}" if entry.joint else entry.name
        run = SearchRun(
            out=str(self.out / "searches" / folder),
            prompts=str(self.prompts(entry)),
            model=aligned_choice(self.run) if entry.aligned else cfg.model,
            sampling=replace(cfg.sample.sampling, **sampling_parts(fill_names(entry.sampling, self.files))),
            longform=replace(cfg.sample.longform, **entry.longform),
            search=SearchConfig(
                method=Choice(entry.method, dict(entry.args)),
                reward=RewardConfig(weights=dict(entry.weights)),
                budget=float(budget),
            ),
            seed=cfg.seed + entry.seed,
        )
        return search.run(run)

    def score(self, folder: Path) -> Path:
        """The scores of songs by all witnesses, and by what is searched for."""
        cfg = replace(round_config(self.run).score, window_s=0.0, hop_s=0.0, samples=[str(folder)])
        names = dict.fromkeys([*(str(name) for name in cfg.scorers), *WITNESSES])
        return score.run(replace(cfg, out=str(self.out / "scores" / folder.name), scorers=list(names)))


def read_songs(folder: Path, scores: Path) -> SongSet:
    """The songs of a folder that have scores, of equal weight within their prompt."""
    samples = open_samples(folder)
    songs = join_scores(read_scores(scores), samples, samples.prompts())
    columns = {axis: songs.values[:, place] for place, axis in enumerate(songs.axes)}
    return even_songs(songs.prompt_ids, {axis: v for axis, v in columns.items() if np.isfinite(v).all()})


def all_songs(bench: SearchBench, entry: Entry) -> SongSet:
    """All songs of an entry's largest budget."""
    if entry.name not in bench.songs:
        folder = bench.search(entry, max(entry.budgets))
        bench.songs[entry.name] = read_songs(folder, bench.score(folder))
    return bench.songs[entry.name]


def select_prompts(songs: SongSet, names: Sequence[str]) -> SongSet:
    """The songs of some prompts."""
    mask = np.isin(songs.prompts, list(names))
    prompts = tuple(np.array(songs.prompts)[mask].tolist())
    return SongSet(prompts, {a: v[mask] for a, v in songs.scores.items()}, songs.weights[mask])


def best_songs(songs: SongSet, rewards: np.ndarray, n: int) -> SongSet:
    """The same songs with their probabilities to be the best of n of their prompt by the reward."""
    weights = np.zeros(len(songs.prompts))
    for rows in songs.places.values():
        weights[rows] = best_of_n_weights(rewards[rows], n)
    return SongSet(songs.prompts, songs.scores, weights)


def rewards_of(songs: SongSet, weights: Mapping[str, float]) -> np.ndarray:
    """The reward of songs from their scores."""
    cfg, total = RewardConfig(weights=dict(weights)), sum(map(abs, weights.values()))
    columns = []
    for axis, weight in weights.items():
        center, deviation = cfg.unit(axis)
        columns.append(weight / total * (songs.scores[axis] - center) / deviation)
    return np.sum(columns, axis=0)


def axis_values(axis: str, songs: SongSet) -> np.ndarray:
    """The scores of songs on an axis."""
    return songs.scores[axis]


def mean_gain(songs: SongSet, other: SongSet, values: ValuesOf, unit: float = 1.0) -> dict[str, float]:
    """What songs have more than others of the same prompts, a mean over prompts with its interval."""
    difference = songs.prompt_means(values(songs)) - other.prompt_means(values(other))
    estimate = estimate_mean(difference / unit, sorted(songs.places)).interval()
    return round_values({"mean": estimate.value, "low": estimate.low, "high": estimate.high})


def measure_point(
    bench: SearchBench, songs: SongSet, base: SongSet, entry: Entry, cost: float, kl: float | None
) -> Point:
    """The numbers of winners beside plain songs of the same prompts, and beside the best of as many of them."""
    base, scale = select_prompts(base, tuple(songs.places)), bench.scale()
    rivals = best_songs(base, rewards_of(base, entry.weights), max(1, round(cost)))

    def reward(some: SongSet) -> np.ndarray:
        return rewards_of(some, entry.weights)

    return {
        "name": f"{entry.name} at {cost:g}", "method": entry.method, "n": None, "kl": kl, "cost": cost,
        "prompts": len(songs.places),
        "reward": mean_gain(songs, base, reward),
        **measure_songs(songs, base, scale, read_table().of_group(BAND_GROUP)),
        "over_choice": {
            "W.all": mean_gain(songs, rivals, lambda some: scale.values(some.scores)["W.all"]),
            "reward": mean_gain(songs, rivals, reward),
        },
        "axes": {
            axis: mean_gain(songs, base, partial(axis_values, axis), base.scores[axis].std(ddof=1) or 1.0)
            for axis in sorted(songs.scores.keys() & base.scores.keys())
        },
        "verdict": None,
    }  # fmt: skip


def stages(bench: SearchBench, plan: Sequence[Entry]) -> Iterator[tuple[str, Callable[[], Point]]]:
    """The points of a plan by name. The first entry of a length is the best of N of the base, which all entries of
    this length are compared with."""
    bases: dict[float, Entry] = {}
    for entry in plan:
        first = bases.setdefault(entry.seconds, entry)
        if entry.method == "best_of_n" and not entry.one_draw:
            measure = partial(_choice_point, bench, entry, source=song_source(plan, entry), first=first)
        else:
            measure = partial(_search_point, bench, entry, first=first)
        for budget in entry.budgets:
            yield f"{entry.name} at {budget}", partial(measure, budget)


def _choice_point(bench: SearchBench, entry: Entry, n: int, *, source: Entry, first: Entry) -> Point:
    """The best of n of the source's songs by the entry's reward, by order statistics over all of them."""
    songs, scale = all_songs(bench, source), bench.scale()
    winners = best_songs(songs, rewards_of(songs, entry.weights), n)
    cost = n * song_nfe(bench, source) / song_nfe(bench, first)
    kl = best_of_n_kl(n) if source is first else None
    point = measure_point(bench, winners, all_songs(bench, first), entry, cost, kl)
    over_one = mean_gain(winners, songs, lambda some: scale.values(some.scores)["W.all"])
    return {**point, "name": f"{entry.name} at {n}", "over_one": over_one}


def _search_point(bench: SearchBench, entry: Entry, budget: int, *, first: Entry) -> Point:
    """The winners of a search that is run."""
    folder = bench.search(entry, budget)
    winners = Samples(bench.out / "winners" / f"{entry.name}-{budget}")
    write_prompts(winners.folder / "prompts.jsonl", Samples(folder).prompts(), {})
    copy_winners(folder, winners, 1)
    songs = read_songs(winners.folder, bench.score(winners.folder))
    prompts = len(songs.places)
    cost = read_json(folder / MANIFEST)["nfe"] / (prompts * song_nfe(bench, first))
    point = measure_point(bench, songs, all_songs(bench, first), entry, cost, None)
    return {**point, "name": f"{entry.name} at {budget}", "songs": len(search_rows(folder)) / prompts}


def song_nfe(bench: SearchBench, entry: Entry) -> float:
    """Network evaluations of a song of best-of-N, by the finished search."""
    folder = bench.search(entry, max(entry.budgets))
    rows = search_rows(folder)
    return sum(row.nfe for row in rows) / len(rows)


def search_table(points: Sequence[Point]) -> str:
    """The points in Markdown, a row a point."""
    head = [
        "", "cost", "prompts", "reward", *COMPOSITES, "W.all over the base's best of as many",
        "in-band share, change", "musicnn.tags",
    ]  # fmt: skip
    rows = []
    for point in points:
        if "cost" not in point:
            continue
        composites, in_band = point["composites"], point["in_band"]
        rows.append(
            [
                point["name"].rpartition(" at ")[0], f"{point['cost']:.3g}", str(point["prompts"]),
                as_value(point["reward"]),
                *(as_value(composites[name]) if name in composites else "" for name in COMPOSITES),
                as_value(point["over_choice"]["W.all"]),
                f"{in_band['share']:.2f}, {as_value(in_band['change'], 3)}",
                as_value(point["axes"]["musicnn.tags"]),
            ]
        )  # fmt: skip
    return markdown_table(head, rows)


def run_stages(bench: SearchBench, plan: Sequence[Entry]) -> list[Point]:
    """Measure the points of a plan that the file lacks; all points of the file."""
    for name, measure in stages(bench, plan):
        if name in {point["name"] for point in read_points(bench.file)}:
            continue
        log(f"point {name}")
        add_point(bench.file, measure())
    return list(read_points(bench.file))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run of the demo")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_search"))
    parser.add_argument("--plan", type=Path, default=ROOT / "tools" / "bench" / "search_plan.yaml")
    parser.add_argument("--plot", type=Path, help="an SVG to be drawn")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    args = parser.parse_args(arguments)
    check_source(args.run)
    points = run_stages(SearchBench(args.run, args.out), read_plan(args.plan))
    if args.plot:
        atomic_write(args.plot, search_svg(points))
    print(search_table(points) if args.table else json.dumps({"points": points}, indent=1))


if __name__ == "__main__":
    main()
