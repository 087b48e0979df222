"""MusicRL's stages on simulated listeners: what people's votes gain where their taste is known. JSON out.

    diffdpo demo out=runs/demo
    python tools/bench_musicrl.py --run runs/demo [--run …] [--out FOLDER] [--votes 2000] [--table]

Listeners with a hidden taste (tools/bench/listeners.py) vote on the base's songs of the mining prompts. A reward
model learns from the votes, on features that share no network with the taste. Stage R aligns with designed rewards,
U with the reward model, RU with the reward model from where R ended: the presets tiny/musicrl_*. All are compared
on the hidden utility of their songs of the evaluation prompts, in deviations of the base's songs. A stopped
bench goes on.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.config import build_config
from diffdpo.progress import log
from diffdpo.recipes import reward
from diffdpo.recipes import round as rounds
from diffdpo.recipes.reward import RewardRun
from diffdpo.recipes.round import RoundRun
from diffdpo.runs import MANIFEST, atomic_write, is_finished, read_json
from diffdpo.statistics import estimate_mean
from tools.bench.aligned_models import check_source
from tools.bench.listeners import HiddenTaste, Listeners, WitnessedSong, witnessed_songs, write_votes
from tools.bench.measure import markdown_table, round_values

STAGES = ("r", "u", "ru")
COMPARISONS = (("r", "base"), ("u", "base"), ("ru", "base"), ("u", "r"), ("ru", "u"))
"""Which songs are compared with which."""


@dataclass(frozen=True)
class MusicRLBench:
    """Finished rounds whose candidates are voted on, and the folder of the bench."""

    runs: tuple[Path, ...]
    out: Path
    listeners: Listeners
    words: tuple[str, ...] = ()
    """Changes of the presets."""

    @cached_property
    def songs(self) -> list[WitnessedSong]:
        """The songs that are voted on."""
        return [
            song
            for run in self.runs
            for song in witnessed_songs(run / "round-1" / "candidates", run / "scores")
        ]

    @cached_property
    def taste(self) -> HiddenTaste:
        """The hidden taste, in units of these songs."""
        return HiddenTaste.of(self.songs)

    def votes(self) -> Path:
        """The folder of the votes."""
        folder = self.out / "votes"
        return folder if folder.is_dir() else write_votes(self.songs, self.listeners, self.taste, folder)

    def reward(self) -> Path:
        """The folder of the reward model."""
        folder = self.out / "reward"
        if is_finished(folder):
            return folder
        return reward.run(RewardRun(out=str(folder), votes=[str(self.votes())]))

    def stage(self, name: str) -> Path:
        """The folder of a finished stage."""
        folder = self.out / name
        if is_finished(folder):
            return folder
        words = [f"out={folder}", *self.words]
        if name == "ru":
            words.append(f"start={self.stage('r')}")
        cfg = build_config(RoundRun, f"tiny/musicrl_{name}", words, "round")
        if name != "r":
            model = {"name": "reward", "args": {"path": str(self.reward())}}
            scorers = [model, *(entry for entry in cfg.score.scorers if isinstance(entry, str))]
            cfg = replace(cfg, score=replace(cfg.score, scorers=scorers))
        log(f"stage {name.upper()}")
        return rounds.run(cfg)

    def utilities(self, name: str) -> dict[str, tuple[str, float]]:
        """The prompt and the hidden utility of every song of a stage's model, or of the base, by sample id."""
        run = self.stage("r" if name == "base" else name)
        folder = run / ("baseline" if name == "base" else f"round-{report_round(run)}/aligned")
        songs = witnessed_songs(folder, run / "scores")
        values = self.taste.utility(np.stack([song.values for song in songs]))
        return {
            song.row.sample_id: (song.row.prompt_id, float(value))
            for song, value in zip(songs, values, strict=True)
        }


def report_round(run: Path) -> int:
    """The round whose model a run's report is about: the best, or the last where none kept the rule."""
    manifest = read_json(run / MANIFEST)
    return int(manifest["best"] or manifest["rounds"])


def compare(
    first: Mapping[str, tuple[str, float]], second: Mapping[str, tuple[str, float]], unit: float
) -> dict[str, Any]:
    """The mean difference of the utilities of paired songs, with its interval over prompts."""
    names = sorted(set(first) & set(second))
    values = np.array([first[name][1] - second[name][1] for name in names]) / unit
    interval = estimate_mean(values, [first[name][0] for name in names]).interval()
    return round_values({"mean": interval.value, "low": interval.low, "high": interval.high}) | {
        "songs": len(names)
    }


def measure(bench: MusicRLBench) -> dict[str, Any]:
    """Run what is not there yet, and compare."""
    utilities = {name: bench.utilities(name) for name in ("base", *STAGES)}
    unit = float(np.std([value for _, value in utilities["base"].values()], ddof=1))
    report = read_json(bench.reward() / "report.json")
    stages = {name: read_json(bench.stage(name) / MANIFEST) for name in STAGES}
    return {
        "listeners": vars(bench.listeners),
        "songs": len(bench.songs),
        "reward": report,
        "rounds": {name: {"best": m["best"], "results": m["results"]} for name, m in stages.items()},
        "hidden_utility": {
            f"{first} - {second}": compare(utilities[first], utilities[second], unit)
            for first, second in COMPARISONS
        },
    }


def utility_table(result: Mapping[str, Any]) -> str:
    """The comparisons in Markdown."""
    rows = [
        [name, f"{row['mean']:+.2f} ({row['low']:+.2f} {row['high']:+.2f})"]
        for name, row in result["hidden_utility"].items()
    ]
    return markdown_table(["", "hidden utility, in deviations of the base's songs"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, action="append", required=True, help="a finished run of the demo")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_musicrl"))
    parser.add_argument("--votes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the presets")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    args = parser.parse_args(arguments)
    for run in args.run:
        check_source(run)
    listeners = Listeners(votes=args.votes, seed=args.seed)
    bench = MusicRLBench(tuple(args.run), args.out, listeners, tuple(args.set))
    result = measure(bench)
    atomic_write(args.out / "musicrl.json", json.dumps(result, indent=1) + "\n")
    print(utility_table(result) if args.table else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
