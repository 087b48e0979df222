"""Votes in the order of time, with the scores of their songs: what a monitor of listeners reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffdpo.data.samples import Samples
from diffdpo.data.song_scores import Scores, SongScores, join_scores
from diffdpo.data.vote_arrays import FolderVote, VoteSongs
from diffdpo.errors import DataError
from diffdpo.registry import closest

TARGET_OF = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}


@dataclass(frozen=True, eq=False, kw_only=True)
class OrderedVotes:
    """Votes whose two songs have scores, the oldest first."""

    rows: tuple[FolderVote, ...]
    targets: Float[np.ndarray, " vote"]
    """1 where the first song is preferred, 0.5 for a tie, 0 for the second."""
    sides: tuple[tuple[tuple[str, str], tuple[str, str]], ...]
    """Samples folder and id of the two songs of every vote."""

    @property
    def raters(self) -> list[str]:
        return [vote.rater for vote in self.rows]


class ScoredSongs:
    """The values of songs on axes, by samples folder and id."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self._folders: dict[str, tuple[SongScores, dict[str, int]]] = {}

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that have scores."""
        return self.scores.axes

    def values(self, folder: str, song: str) -> np.ndarray:
        """The values of a song on all axes; NaN where it has none."""
        if folder not in self._folders:
            samples = Samples(Path(folder))
            songs = join_scores(self.scores, samples, samples.prompts())
            self._folders[folder] = songs, {name: i for i, name in enumerate(songs.sample_ids)}
        songs, places = self._folders[folder]
        if song not in places:
            return np.full(len(self.axes), np.nan)
        return np.asarray(songs.values[places[song]], np.float64)

    def table(self, songs: Sequence[tuple[str, str]], axes: Sequence[str]) -> Float[np.ndarray, "song axis"]:
        """The values of songs on some axes. DataError for an axis without scores."""
        for axis in axes:
            if axis not in self.axes:
                hint = closest(axis, self.axes)
                raise DataError(f"no scores on axis {axis!r}.{hint} There are {', '.join(self.axes)}.")
        places = [self.axes.index(axis) for axis in axes]
        rows = [self.values(folder, song)[places] for folder, song in songs]
        return np.array(rows, np.float64).reshape(len(songs), len(axes))


def order_votes(
    votes: Sequence[FolderVote], songs: VoteSongs, song_values: ScoredSongs, axis: str
) -> OrderedVotes:
    """The votes on two songs with a score on the axis, by time; of equal times in the order of their tables.

    Control pairs and repetitions are left out.
    """
    rows, sides = [], []
    for vote in sorted(votes, key=lambda vote: vote.row.created_at):
        first, second = songs.pair(vote)
        if first.is_sample and second.is_sample and not (vote.row.gold or vote.row.repeat_of):
            rows.append(vote)
            sides.append(((first.folder, first.name), (second.folder, second.name)))
    values = [song_values.table([pair[side] for pair in sides], [axis])[:, 0] for side in (0, 1)]
    places = np.flatnonzero(np.isfinite(values[0] + values[1]))
    rows, sides = [rows[place] for place in places], [sides[place] for place in places]
    targets = np.array([TARGET_OF[vote.row.answer] for vote in rows], np.float64)
    return OrderedVotes(rows=tuple(rows), targets=targets, sides=tuple(sides))
