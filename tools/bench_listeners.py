"""How well a reward model learns the hidden taste of simulated listeners, on prompts it has not seen. JSON out.

    python tools/bench_listeners.py --run RUN [--run RUN …] --work FOLDER [--seeds 5] [--tune] [--hidden 16]

RUN is a finished `diffdpo demo`, or any round: its folders `baseline`, `round-*/candidates` and `round-*/aligned`
with `scores` that hold the axes of notes and beats. For each seed some prompts are held out, and the same model is
fitted twice on the others: to the votes of listeners who err, and to 50,000 votes without errors on the same songs.
`accuracy` is the share of all pairs of songs of a held-out prompt that the model orders as the hidden utility does,
the mean over prompts. Half of the prompts is for tuning: only with --tune they are held out, and then no other is
used; without it prompts of the other half are held out. Features and seeds lie in the work folder: a run that was
interrupted goes on.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.data.samples import Samples
from diffdpo.data.vote_songs import VoteSong, vote_songs
from diffdpo.data.votes import VoteRow
from diffdpo.extractors import DEFAULT_EXTRACTORS, EXTRACTORS
from diffdpo.extractors.base import Crops
from diffdpo.preferences.reward_fit import FittedReward, RewardFit, RewardNetwork
from diffdpo.recipes.reward import RewardRun, fit_votes
from diffdpo.recipes.reward_features import SongParts, song_parts
from diffdpo.recipes.reward_votes import SongVote, build_design
from diffdpo.runs import read_json, write_json
from tools.bench.listeners import HiddenTaste, Listeners, WitnessedSong, simulate_votes, witnessed_songs
from tools.bench.measure import round_values

TUNING_SEED = 99
NOISELESS = Listeners(votes=50_000, flips=0.0, ties=0.0)


@dataclass(frozen=True, eq=False)
class World:
    """All songs, their features, and the hidden utility."""

    songs: Sequence[WitnessedSong]
    taste: HiddenTaste
    parts: SongParts

    @property
    def groups(self) -> np.ndarray:
        """The prompt group of every song."""
        return np.array([song.row.group or song.row.prompt_id for song in self.songs])

    def subset(self, groups: Sequence[str]) -> list[WitnessedSong]:
        """The songs of some prompt groups."""
        return [song for song in self.songs if (song.row.group or song.row.prompt_id) in groups]


def read_world(runs: Sequence[Path], work: Path) -> World:
    """The songs of some rounds with their features, computed where the work folder has none."""
    songs: list[WitnessedSong] = []
    for run in runs:
        for folder in (
            run / "baseline",
            *sorted(run.glob("round-*/candidates")),
            *sorted(run.glob("round-*/aligned")),
        ):
            songs += witnessed_songs(folder, run / "scores")
    sounds = [sound_of(song) for song in songs]
    extractors = {name: EXTRACTORS[name]() for name in DEFAULT_EXTRACTORS}
    parts = song_parts(sounds, extractors, Crops(), work / "features")
    usable = [song for song, sound in zip(songs, sounds, strict=True) if all(map(len, parts[sound].values()))]
    return World(usable, HiddenTaste.of(usable), parts)


def sound_of(song: WitnessedSong) -> VoteSong:
    """The sound of a song as votes name it."""
    return VoteSong(song.row.sha256, Samples(song.folder).audio(song.row.sample_id))


def split_prompts(groups: Sequence[str], seed: int, tune: bool, share: float) -> tuple[list[str], list[str]]:
    """Prompt groups to learn from, and those held out."""
    names = sorted(set(groups))
    order = np.random.default_rng(TUNING_SEED).permutation(len(names))
    tuning_groups = [names[place] for place in order[: len(names) // 2]]
    pool = tuning_groups if tune else [name for name in names if name not in tuning_groups]
    count = max(1, round(share * len(pool)))
    held_out = [
        pool[place] for place in np.random.default_rng([TUNING_SEED, seed]).permutation(len(pool))[:count]
    ]
    train_groups = [name for name in (tuning_groups if tune else names) if name not in held_out]
    return train_groups, held_out


def fit(
    world: World, listeners: Listeners, groups: Sequence[str], cfg: RewardRun, work: Path
) -> FittedReward:
    """The model of the votes of some listeners on the songs of some prompt groups."""
    rows = simulate_votes(world.subset(groups), listeners, world.taste, work)
    return fit_votes(build_design(as_song_votes(rows, work, world.parts), world.parts, Crops()), cfg)


def as_song_votes(rows: Sequence[VoteRow], work: Path, parts: SongParts) -> list[SongVote]:
    """Votes with the songs that have features."""
    by_hash = {song.sha256: song for song in parts}
    votes = []
    for row in rows:
        first, second = (by_hash[song.sha256] for song in vote_songs(work, row))
        votes.append(SongVote(row, first, second, ""))
    return votes


def accuracy(result: FittedReward, world: World, groups: Sequence[str]) -> float:
    """The share of pairs of a prompt's songs in the hidden order, the mean over prompts."""
    shares = []
    for group in groups:
        songs = world.subset([group])
        if len(songs) < 2:
            continue
        features = np.concatenate(
            [np.concatenate(list(world.parts[sound_of(song)].values()), axis=1) for song in songs]
        )
        hidden = world.taste.utility(np.stack([song.values for song in songs]))
        utility = result.head.utility(features)
        first, second = np.triu_indices(len(songs), 1)
        agreement = np.sign(hidden[first] - hidden[second]) * np.sign(utility[first] - utility[second])
        shares.append(((agreement + 1) / 2).mean())
    return float(np.mean(shares))


def run_seed(
    world: World, listeners: Listeners, split: tuple[Sequence[str], Sequence[str]], cfg: RewardRun, work: Path
) -> dict[str, Any]:
    """Both models of a seed."""
    train_groups, held_out = split
    rows: dict[str, Any] = {
        "seed": listeners.seed,
        "train_groups": len(train_groups),
        "held_out": len(held_out),
    }
    for name, people in (("votes", listeners), ("noiseless", replace(NOISELESS, seed=listeners.seed))):
        result = fit(world, people, train_groups, cfg, work)
        rows[name] = {
            "accuracy": accuracy(result, world, held_out),
            "learned_accuracy": accuracy(result, world, train_groups),
            "l2": result.l2,
        }
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over seeds, and the difference with its standard error."""
    votes, noiseless = (np.array([row[name]["accuracy"] for row in rows]) for name in ("votes", "noiseless"))
    difference = noiseless - votes
    error = difference.std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else float("nan")
    return {
        "votes": float(votes.mean()),
        "noiseless": float(noiseless.mean()),
        "difference": float(difference.mean()),
        "difference_error": float(error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, action="append", required=True, help="may be repeated")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--votes", type=int, default=2000)
    parser.add_argument("--held-out", type=float, default=0.4, help="of the prompts that may be held out")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--hidden", type=int, default=0)
    parser.add_argument("--components", type=int, default=RewardFit().components)
    parser.add_argument("--scale-power", type=float, default=RewardFit().scale_power)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = arguments.work
    world = read_world(arguments.run, work)
    cfg = RewardRun(
        out=str(work),
        fit=RewardFit(components=arguments.components, scale_power=arguments.scale_power),
        network=RewardNetwork(hidden=arguments.hidden),
    )
    settings = {
        "songs": len(world.songs), "votes": arguments.votes, "tune": arguments.tune, "held_out": arguments.held_out,
        "fit": asdict(cfg.fit), "network": asdict(cfg.network),
    }  # fmt: skip
    rows = []
    for seed in range(arguments.seeds):
        path = work / f"{'tune' if arguments.tune else 'seed'}-{seed}.json"
        if path.is_file() and (earlier_run := read_json(path))["settings"] == settings:
            rows.append(earlier_run["row"])
            continue
        split = split_prompts(world.groups.tolist(), seed, arguments.tune, arguments.held_out)
        rows.append(run_seed(world, Listeners(votes=arguments.votes, seed=seed), split, cfg, work))
        write_json(path, {"settings": settings, "row": rows[-1]})
        print(json.dumps(round_values(rows[-1])), file=sys.stderr, flush=True)
    print(json.dumps(round_values({"settings": settings, "seeds": rows, "mean": summary(rows)}), indent=1))


if __name__ == "__main__":
    main()
