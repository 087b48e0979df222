"""Votes of several folders as arrays: songs, raters and outcomes by index.

A song is known by its samples folder and its id; one that is a plain file, or an entry of a data set, by its source
and its name.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from diffdpo.data.samples import SAMPLES, SampleRow, Samples
from diffdpo.data.votes import VoteRow
from diffdpo.mining.spans import join_spans
from diffdpo.preferences.ranking import FIRST, SECOND, TIE, VoteArrays

OUTCOME_OF = {"a": FIRST, "b": SECOND, "tie": TIE, "both_bad": TIE}
"""Both bad ranks the two songs alike; that both are bad is counted apart."""
NO_NAME = "(unnamed)"
STRENGTH_WEIGHTS = (1.0, 0.5, 1.0, 1.5)


@dataclass(frozen=True, order=True)
class VoteSongKey:
    """What identifies a song of a vote."""

    folder: str
    """The resolved samples folder; the source of the vote for songs without one."""
    name: str
    is_sample: bool
    """Whether `folder` is a samples folder that holds the song."""


@dataclass(frozen=True)
class FolderVote:
    """A vote with the folder of its table."""

    folder: Path
    row: VoteRow

    @property
    def rater(self) -> str:
        return self.row.rater or f"{NO_NAME} {self.row.source}".strip()


class VoteSongs:
    """Finds the songs of votes in samples folders, which are opened once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, SampleRow]] = {}

    def rows(self, folder: Path) -> dict[str, SampleRow]:
        """The songs of a samples folder by id; none if it is no samples folder."""
        if folder not in self._folders:
            exists = (folder / SAMPLES.folder).is_dir()
            self._folders[folder] = {row.sample_id: row for row in Samples(folder).rows()} if exists else {}
        return self._folders[folder]

    def key(self, folder: Path, samples: str, song: str, source: str) -> VoteSongKey:
        """The identity of a song that a table in `folder` names."""
        path = (folder / samples).resolve()
        if samples and song in self.rows(path):
            return VoteSongKey(str(path), song, True)
        return VoteSongKey(str(path) if samples else source, song, False)

    def sample(self, key: VoteSongKey) -> SampleRow:
        """The row of a song that is in a samples folder."""
        return self.rows(Path(key.folder))[key.name]

    def pair(self, vote: FolderVote) -> tuple[VoteSongKey, VoteSongKey]:
        """The two songs of a vote, in the order of presentation."""
        row = vote.row
        return (
            self.key(vote.folder, row.samples_a, row.song_a, row.source),
            self.key(vote.folder, row.samples_b, row.song_b, row.source),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class VoteSet:
    """The votes on one axis as arrays."""

    rows: tuple[FolderVote, ...]
    """Votes on songs, in the order of the first arrays; control pairs follow them in `arrays`."""
    songs: tuple[VoteSongKey, ...]
    raters: tuple[str, ...]
    arrays: VoteArrays
    both_bad: Bool[np.ndarray, " vote"]

    @property
    def is_song(self) -> Bool[np.ndarray, " vote"]:
        """Whether a vote is on two songs, not on a control pair."""
        return self.arrays.first != self.arrays.second

    def song_counts(self, mask: Bool[np.ndarray, " vote"]) -> Int[np.ndarray, " song"]:
        """In how many of some votes each song is."""
        n = len(self.songs)
        first, second = self.arrays.first[mask], self.arrays.second[mask]
        return np.bincount(first, minlength=n) + np.bincount(second, minlength=n)

    def bad_shares(self) -> Float[np.ndarray, " song"]:
        """The share of each song's votes that found both songs bad."""
        total = self.song_counts(self.is_song)
        return self.song_counts(self.is_song & self.both_bad) / np.maximum(total, 1)

    def bad_moments(self) -> dict[VoteSongKey, tuple[tuple[float, float], ...]]:
        """The moments that listeners marked as bad in each song, in seconds; overlapping ones are joined."""
        moments: dict[VoteSongKey, list[tuple[float, float]]] = defaultdict(list)
        for vote, first, second in zip(self.rows, self.arrays.first, self.arrays.second, strict=False):
            moments[self.songs[first]] += vote.row.spans_a
            moments[self.songs[second]] += vote.row.spans_b
        return {key: tuple(join_spans(spans, 0.0)) for key, spans in moments.items() if spans}

    def listeners(self) -> Int[np.ndarray, " song"]:
        """How many raters judged each song."""
        is_song = self.is_song
        rater = np.tile(self.arrays.rater[is_song], 2)
        song = np.concatenate([self.arrays.first[is_song], self.arrays.second[is_song]])
        pairs = np.unique(np.stack([song, rater], 1), axis=0)
        return np.bincount(pairs[:, 0], minlength=len(self.songs))

    def rater_groups(self) -> dict[str, dict[str, str]]:
        """What each rater said about themselves, by rater; the last answer counts."""
        groups: dict[str, dict[str, str]] = defaultdict(dict)
        for vote in self.rows:
            groups[vote.rater] |= {key: value for key, value in vote.row.rater_group.items() if value}
        return dict(groups)


def arrange_votes(
    votes: Iterable[FolderVote],
    songs: VoteSongs,
    *,
    by_system: bool = False,
    strength_weights: Sequence[float] = STRENGTH_WEIGHTS,
    control_margin: float = 3.0,
) -> VoteSet:
    """Votes as arrays. Repetitions are left out; control pairs tell of raters only.

    With `by_system` the generators are ranked in place of the songs; votes without both names, or within one
    system, are left out. `strength_weights` are the weights of votes by their strength, the first where it was not
    asked for. `control_margin` is the difference of utilities in a control pair.
    """
    first_votes = [vote for vote in votes if not vote.row.repeat_of]
    real = [vote for vote in first_votes if not vote.row.gold]
    if by_system:
        real = [v for v in real if v.row.system_a and v.row.system_b and v.row.system_a != v.row.system_b]
        keys = [
            (VoteSongKey("", v.row.system_a, False), VoteSongKey("", v.row.system_b, False)) for v in real
        ]
    else:
        keys = [songs.pair(vote) for vote in real]
    real, keys = _without_pairs_of_one_song(real, keys)
    control = [vote for vote in first_votes if vote.row.gold]
    names = sorted({key for pair in keys for key in pair})
    raters = sorted({vote.rater for vote in [*real, *control]})
    song_place, rater_place = ({key: i for i, key in enumerate(entries)} for entries in (names, raters))
    margin = {"a": control_margin, "b": -control_margin, "tie": 0.0, "both_bad": 0.0}
    complete = [*real, *control]
    places = [(song_place[a], song_place[b]) for a, b in keys] + [(0, 0)] * len(control)
    arrays = VoteArrays(
        songs=len(names),
        raters=len(raters),
        first=np.array([a for a, _ in places], np.int64),
        second=np.array([b for _, b in places], np.int64),
        rater=np.array([rater_place[vote.rater] for vote in complete], np.int64),
        outcome=np.array([OUTCOME_OF[vote.row.answer] for vote in complete], np.int64),
        weight=np.array([strength_weights[vote.row.strength] for vote in complete], np.float64),
        shift=np.array([0.0] * len(real) + [margin[vote.row.gold] for vote in control]),
    )
    both_bad = np.array([vote.row.answer == "both_bad" for vote in complete], bool)
    return VoteSet(
        rows=tuple(real), songs=tuple(names), raters=tuple(raters), arrays=arrays, both_bad=both_bad
    )


def _without_pairs_of_one_song(
    votes: Sequence[FolderVote], keys: Sequence[tuple[VoteSongKey, VoteSongKey]]
) -> tuple[list[FolderVote], list[tuple[VoteSongKey, VoteSongKey]]]:
    places = [i for i, (a, b) in enumerate(keys) if a != b]
    return [votes[i] for i in places], [keys[i] for i in places]
