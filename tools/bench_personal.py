"""What twenty votes of one listener gain over everybody's reward model, on simulated listeners. JSON out.

    diffdpo demo out=runs/demo
    python tools/bench_personal.py --run runs/demo [--run …] --cache FOLDER [--individuality 2] [--votes 20]

Listeners weigh three aspects of a song, each with weights of their own around the common ones
(tools/bench/listeners.py); the features share no network with these aspects. Bases are fitted to the votes of many
listeners, weights of 30 new ones to their own few votes. Both kinds of votes are on some prompts, and the share of
pairs that are ordered as the listener would is measured on the others, beside that of the pooled model.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.data.vote_songs import VoteSong
from diffdpo.data.votes import VoteRow
from diffdpo.extractors.base import Crops, join_features
from diffdpo.preferences.reward_fit import RewardFit, principal_basis
from diffdpo.preferences.tastes import TasteFit, Tastes, fit_tastes
from diffdpo.recipes.reward import RewardRun, build_features
from diffdpo.recipes.reward_features import song_parts
from diffdpo.statistics import estimate_mean
from tools.bench.aligned_models import check_source
from tools.bench.listeners import HiddenTaste, Listeners, WitnessedSong, simulate_votes, witnessed_songs
from tools.bench.measure import round_values

COMPONENTS, SCALE_POWER = 32, 0.5
TARGETS = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True, eq=False)
class FeatureSongs:
    """Songs with what listeners weigh and with features."""

    songs: Sequence[WitnessedSong]
    aspects: np.ndarray
    features: np.ndarray
    groups: np.ndarray

    def take(self, mask: np.ndarray) -> "FeatureSongs":
        places = np.flatnonzero(mask)
        return FeatureSongs(
            [self.songs[int(k)] for k in places], self.aspects[mask], self.features[mask], self.groups[mask]
        )

    def pairs(self) -> np.ndarray:
        """All pairs of songs of one prompt."""
        first, second = np.triu_indices(len(self.songs), 1)
        is_pair = self.groups[first] == self.groups[second]
        return np.stack([first[is_pair], second[is_pair]], 1)


def read_songs(runs: Sequence[Path], cache: Path) -> FeatureSongs:
    """The candidates of finished rounds."""
    songs = [song for run in runs for song in witnessed_songs(run / "round-1" / "candidates", run / "scores")]
    keys = [VoteSong(song.row.sha256, song.folder / "audio" / f"{song.row.sample_id}.flac") for song in songs]
    crops = Crops()
    parts = song_parts(keys, build_features(RewardRun(out="").features), crops, cache)
    taste = HiddenTaste.of(songs)
    return FeatureSongs(
        songs,
        taste.aspects(np.stack([song.values for song in songs])),
        np.concatenate([join_features(list(parts[key].values()), crops) for key in keys]),
        np.array([song.row.group or song.row.prompt_id for song in songs]),
    )


def standardise(songs: FeatureSongs, reference: FeatureSongs) -> np.ndarray:
    """Features in standard deviations of some songs, cut as in a reward model."""
    limit = RewardFit().limit
    scale = np.maximum(reference.features.std(0), 1e-9)
    return np.clip((songs.features - reference.features.mean(0)) / scale, -limit, limit)


def differences(rows: Sequence[VoteRow], songs: FeatureSongs, components: np.ndarray) -> np.ndarray:
    """The first song's components minus the second's."""
    place = {song.row.sha256: k for k, song in enumerate(songs.songs)}
    first, second = ([place[getattr(row, key)] for row in rows] for key in ("sha256_a", "sha256_b"))
    return components[first] - components[second]


def own_votes(
    songs: FeatureSongs, taste: HiddenTaste, listeners: Listeners, count: int
) -> list[list[VoteRow]]:
    """The first votes of each listener."""
    rows = simulate_votes(songs.songs, listeners, taste, Path())
    by_rater = [[row for row in rows if row.rater == f"rater-{k:02d}"] for k in range(listeners.raters)]
    return [votes[:count] for votes in by_rater]


def measure(
    songs: FeatureSongs, crowd: Listeners, strangers: Listeners, count: int, held_out: int
) -> dict[str, Any]:
    """One division of the prompts: accuracies of new listeners on the prompts that were left out."""
    names = np.unique(songs.groups)
    outside = np.random.default_rng(crowd.seed).permutation(names)[:held_out]
    inside = songs.take(~np.isin(songs.groups, outside))
    tests = songs.take(np.isin(songs.groups, outside))
    taste = HiddenTaste.of(songs.songs)
    x = standardise(inside, inside)
    pairs = inside.pairs()
    basis = principal_basis(x[pairs[:, 0]] - x[pairs[:, 1]], COMPONENTS, SCALE_POWER)
    components, test_components = x @ basis, standardise(tests, inside) @ basis
    rows = simulate_votes(inside.songs, crowd, taste, Path())
    tastes = fit_tastes(
        differences(rows, inside, components),
        np.unique([row.rater for row in rows], return_inverse=True)[1],
        np.array([TARGETS[row.answer] for row in rows]),
        TasteFit(),
    )
    return accuracies(tastes, (inside, components), (tests, test_components), taste, strangers, count)


def accuracies(
    tastes: Tastes,
    inside: tuple[FeatureSongs, np.ndarray],
    tests: tuple[FeatureSongs, np.ndarray],
    taste: HiddenTaste,
    strangers: Listeners,
    count: int,
) -> dict[str, Any]:
    """The accuracies of new listeners by their own weights and by the pooled model."""
    songs, components = tests
    pairs = songs.pairs()
    test = components[pairs[:, 0]] - components[pairs[:, 1]]
    personal, pooled = [], []
    for votes, weights in zip(own_votes(inside[0], taste, strangers, count), strangers.tastes(), strict=True):
        listener = tastes.listener(
            differences(votes, *inside), np.array([TARGETS[row.answer] for row in votes])
        )
        truth = (songs.aspects[pairs[:, 0]] - songs.aspects[pairs[:, 1]]) @ weights > 0
        personal.append(((listener.margin(test) > 0) == truth).mean())
        pooled.append(((test @ tastes.pooled > 0) == truth).mean())
    return {"personal": personal, "pooled": pooled}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, action="append", required=True, help="a finished run of the demo")
    parser.add_argument("--cache", type=Path, default=Path("runs/bench_personal"), help="of features")
    parser.add_argument("--individuality", type=float, default=2.0, help="deviation of weights around 1")
    parser.add_argument("--votes", type=int, default=20, help="of each new listener")
    parser.add_argument("--crowd", type=int, default=4000, help="votes of 60 other listeners")
    parser.add_argument("--held-out", type=int, default=4, help="prompts that nobody voted on")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args(arguments)
    for run in args.run:
        check_source(run)
    songs = read_songs(args.run, args.cache)
    results = []
    for seed in range(args.seeds):
        crowd = Listeners(raters=60, votes=args.crowd, individuality=args.individuality, seed=2 * seed)
        strangers = replace(crowd, raters=30, votes=30 * 4 * args.votes, seed=2 * seed + 1)
        results.append(measure(songs, crowd, strangers, args.votes, args.held_out))
    gains = np.concatenate([np.subtract(r["personal"], r["pooled"]) for r in results])
    names = [f"{seed}/{k}" for seed, r in enumerate(results) for k in range(len(r["personal"]))]
    interval = estimate_mean(gains, names).interval()
    by_seed = [
        estimate_mean(np.subtract(r["personal"], r["pooled"]), names[: len(r["personal"])]).interval()
        for r in results
    ]
    summary = {
        "individuality": args.individuality,
        "votes": args.votes,
        "songs": len(songs.songs),
        "personal": float(np.mean([r["personal"] for r in results])),
        "pooled": float(np.mean([r["pooled"] for r in results])),
        "gain": round_values({"mean": interval.value, "low": interval.low, "high": interval.high}),
        "by_seed": [round_values({"mean": i.value, "low": i.low, "high": i.high}) for i in by_seed],
    }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
