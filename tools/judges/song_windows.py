"""Windows of real songs through the tiny model's codec, and changed versions of them, described once for all."""

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.evaluation.perturbations import PERTURBATIONS, shuffled_latents
from diffdpo.evaluation.real_songs import song_group
from diffdpo.models.base import SongModel
from diffdpo.models.tiny import Tiny
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import ClipFeatures
from diffdpo.types import Clip
from tools.judges.real_songs import LEVEL_LUFS, PLACES, SHORTEST_S, WINDOW_S, find_song

Row = dict[str, Any]
Describe = Callable[[ClipFeatures], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window of a song: where it is, and the arrays that describe each version of it."""

    song: str
    package: str
    artist: str
    group: str
    place: float
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    """Arrays by their names, by version."""


class WindowSounds:
    """The versions of one window, each made when it is asked for; the decoded window is made once."""

    def __init__(self, model: SongModel, latents: torch.Tensor, seed: int) -> None:
        self.model, self.latents, self.seed = model, latents, seed

    @cached_property
    def clean(self) -> Clip:
        """The window as the codec gives it back."""
        return self.model.decode(self.latents)

    def version(self, name: str) -> Clip:
        """A version by name, in its canonical form."""
        rng = np.random.default_rng(self.seed)
        if name in SOUND_CHANGES:
            return canonical(PERTURBATIONS[SOUND_CHANGES[name]](self.clean, rng))
        if name in LATENT_CHANGES:
            return canonical(self.model.decode(LATENT_CHANGES[name](self.latents, rng)))
        if name != "clean":
            raise ValueError(f"no version {name!r} of a window")
        return canonical(self.clean)


def shuffle_latent_seconds(latents: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Seconds of latents in random order, so that the codec itself smooths the seams."""
    return shuffled_latents(latents, rng, run=round(len(latents) / WINDOW_S))


SOUND_CHANGES = {
    "shuffled": "shuffled seconds",
    "loop": "loop of 1 s",
    "loop of 2 s": "loop of 2 s",
    "noise": "white noise",
    "jitter": "time jitter ±80 ms",
    "drifting": "drifting detune ±50 cents",
    "doubled": "voices doubled 70 cents sharp",
}
"""Versions that are a known perturbation of the decoded window."""
LATENT_CHANGES: dict[str, Callable[[torch.Tensor, np.random.Generator], torch.Tensor]] = {
    "shuffled in latents": shuffle_latent_seconds,
}


def window_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of every tool that describes windows of songs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "windows")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time to describe windows")
    return parser


def read_manifest(path: Path) -> list[Row]:
    """The songs in a random order that is always the same: those that are finished first are a fair sample."""
    rows: list[Row] = [json.loads(line) for line in path.read_text().split("\n") if line]
    random.Random(0).shuffle(rows)
    for row in rows:
        row["group"] = song_group(row["package"], row["artist"] or "", row["split"])
    return rows


def describe_windows(
    rows: Sequence[Row],
    corpus: Path,
    work: Path,
    versions: Callable[[Row], Mapping[str, Sequence[str]]],
    describe: Mapping[str, Describe],
    places: Sequence[int],
    deadline_s: float = float("inf"),
) -> Iterator[Window]:
    """Windows of songs, described; what lies in `work` is read from there.

    `versions` says, for each song, which versions are described by which of `describe`. Nothing is computed after
    `deadline_s` seconds; what is finished is still read.
    """
    model, begin = Tiny().load(), time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    for place, row in product(places, rows):
        key = hashlib.sha256(f"{row['path']}|{place}".encode()).hexdigest()[:20]
        may_compute = time.perf_counter() - begin < deadline_s
        latents = window_latents(
            row, corpus, PLACES[place], work / f"{key}.latents.npy", model if may_compute else None
        )
        if latents is None:
            continue
        sounds = WindowSounds(model, latents, int(key[:8], 16))
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for name, names in versions(row).items():
            for version in names:
                path = work / f"{key}.{name}.{version.replace(' ', '_')}.npz"
                if not path.exists() and may_compute:
                    description = describe[name](ClipFeatures(sounds.version(version)))
                    np.savez(path, **dict(description))  # type: ignore[arg-type]
                if path.exists():
                    with np.load(path) as file:
                        arrays.setdefault(version, {}).update(file)
        yield Window(
            song=row["path"],
            package=row["package"],
            artist=row["artist"] or "",
            group=row["group"],
            place=PLACES[place],
            arrays=arrays,
        )


def window_latents(
    row: Row, corpus: Path, place: float, path: Path, model: SongModel | None
) -> torch.Tensor | None:
    """Latents of the window that begins at a share of the song's length.

    None where there is no such window, and where it lies on no disk and there is no model to encode it.
    """
    if not path.exists():
        if model is None:
            return None
        song = find_song(corpus, row)
        clip = song and audio.read(song, start_s=round(place * row["duration_s"], 2), seconds=WINDOW_S)
        usable = clip and clip.seconds >= SHORTEST_S and clip.samples.any()
        latents = model.encode(audio.normalise(clip, LEVEL_LUFS)).numpy() if clip and usable else np.zeros(0)
        np.save(path, latents)
    latents = np.load(path)
    return torch.from_numpy(latents) if latents.size else None
