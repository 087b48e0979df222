"""Simulated listeners with a hidden taste: votes from what two witnesses hear, which no reward model hears.

The hidden utility is a nonlinear function of the judges' axes of `notes` and `beats`. Listeners decide by it, say
`tie` for the closest pairs, and press the wrong button now and then; they may have tastes of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffdpo.data import tables
from diffdpo.data.samples import SampleRow, open_samples, relative_folder
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.data.votes import VOTES, VoteRow

HARMONY_AXES = ("note.triad", "note.key", "note.scale")
RHYTHM_AXES = ("beat.coherence",)
WITNESS_AXES = (*HARMONY_AXES, *RHYTHM_AXES)
WITNESSES = ("notes", "beats")
"""The scorers whose axes decide; a reward model must not share a network with them."""
POOLED_TASTE = (1.0, 1.0, 1.0)
SPREAD = 3.0


@dataclass(frozen=True, eq=False)
class WitnessedSong:
    """A song, where it is, and what the witnesses say of it."""

    row: SampleRow
    folder: Path
    values: Float[np.ndarray, " axis"]


@dataclass(frozen=True, eq=False)
class HiddenTaste:
    """The utility that listeners decide by, in units of a set of songs."""

    center: Float[np.ndarray, " axis"]
    scale: Float[np.ndarray, " axis"]

    @classmethod
    def of(cls, songs: Sequence[WitnessedSong]) -> "HiddenTaste":
        """In units of these songs."""
        values = np.stack([song.values for song in songs])
        return cls(values.mean(0), np.maximum(values.std(0), 1e-9))

    def aspects(self, values: Float[np.ndarray, "song axis"]) -> Float[np.ndarray, "song 3"]:
        """What listeners weigh: harmony and rhythm, each with a saturation, and the weaker of the two."""
        scores = np.clip((values - self.center) / self.scale, -SPREAD, SPREAD)
        harmony = scores[:, : len(HARMONY_AXES)].mean(1)
        rhythm = scores[:, len(HARMONY_AXES) :].mean(1)
        return np.stack([np.tanh(harmony), np.tanh(rhythm), np.minimum(harmony, rhythm)], axis=1)

    def utility(
        self, values: Float[np.ndarray, "song axis"], taste: Sequence[float] = POOLED_TASTE
    ) -> Float[np.ndarray, " song"]:
        """The hidden utility of songs; `taste` weighs the aspects."""
        return self.aspects(values) @ np.asarray(taste)


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """How many listeners vote, and how well."""

    raters: int = 30
    votes: int = 2000
    flips: float = 0.1
    """Share of decided votes that name the wrong song."""
    ties: float = 0.1
    """Share of votes that are ties: those on the closest pairs."""
    individuality: float = 0.0
    """Deviation of a listener's weights of the aspects from the common ones, which are 1."""
    seed: int = 0

    def tastes(self) -> Float[np.ndarray, "rater 3"]:
        """The weights of every listener."""
        rng = np.random.default_rng([self.seed, 1])
        offsets = rng.standard_normal((self.raters, len(POOLED_TASTE)))
        return np.asarray(POOLED_TASTE) + self.individuality * offsets


def witnessed_songs(folder: Path, scores: Path) -> list[WitnessedSong]:
    """The songs of a samples folder with numbers on all axes of the witnesses."""
    samples = open_samples(folder)
    values = join_scores(read_scores(scores), samples, samples.prompts()).by_song()
    songs = []
    for row in samples.rows():
        numbers = np.array([values.get(row.sample_id, {}).get(axis, np.nan) for axis in WITNESS_AXES])
        if np.isfinite(numbers).all():
            songs.append(WitnessedSong(row, folder, numbers))
    return songs


def simulate_votes(
    songs: Sequence[WitnessedSong],
    listeners: Listeners,
    taste: HiddenTaste,
    out: Path,
    source: str = "simulated",
) -> list[VoteRow]:
    """Votes on pairs of songs of one prompt group, prompts and pairs uniformly drawn; rows of a table in `out`."""
    rng = np.random.default_rng([listeners.seed, 2])
    by_group: dict[str, list[int]] = {}
    for place, song in enumerate(songs):
        by_group.setdefault(song.row.group or song.row.prompt_id, []).append(place)
    groups = [places for _, places in sorted(by_group.items()) if len(places) > 1]
    number = rng.integers(len(groups), size=listeners.votes)
    pairs = np.array([rng.choice(groups[k], size=2, replace=False) for k in number]).reshape(-1, 2)
    raters = rng.integers(listeners.raters, size=len(pairs))
    aspects = taste.aspects(np.stack([song.values for song in songs]))
    margins = ((aspects[pairs[:, 0]] - aspects[pairs[:, 1]]) * listeners.tastes()[raters]).sum(1)
    ties = np.zeros(len(pairs), bool)
    ties[np.argsort(np.abs(margins))[: round(listeners.ties * len(pairs))]] = True
    margins = np.where(rng.random(len(pairs)) < listeners.flips, -margins, margins)
    folders = {song.folder: relative_folder(song.folder, out) for song in songs}
    rows = []
    for vote, (first, second) in enumerate(pairs.tolist()):
        answer = "tie" if ties[vote] else "a" if margins[vote] > 0 else "b"
        rows.append(
            _vote_row(
                vote, source, f"rater-{raters[vote]:02d}", (songs[first], songs[second]), answer, folders
            )
        )
    return rows


def _vote_row(
    vote: int,
    source: str,
    rater: str,
    pair: tuple[WitnessedSong, WitnessedSong],
    answer: str,
    folders: Mapping[Path, str],
) -> VoteRow:
    first, second = pair
    return VoteRow(
        vote_id=f"v{vote:06d}",
        source=source,
        rater=rater,
        prompt_id=first.row.prompt_id,
        group=first.row.group,
        samples_a=folders[first.folder],
        samples_b=folders[second.folder],
        song_a=first.row.sample_id,
        song_b=second.row.sample_id,
        sha256_a=first.row.sha256,
        sha256_b=second.row.sha256,
        answer=answer,
        license="CC0-1.0",
    )


def write_votes(
    songs: Sequence[WitnessedSong],
    listeners: Listeners,
    taste: HiddenTaste,
    out: Path,
    source: str = "simulated",
) -> Path:
    """Simulated votes as a table in the folder `out`, in place of one that is there."""
    out.mkdir(parents=True, exist_ok=True)
    tables.replace(out, VOTES, simulate_votes(songs, listeners, taste, out, source))
    return out
