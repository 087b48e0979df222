"""SongEval: 2,399 songs, each rated by four people on five axes from 1 to 5 (Yao et al. 2025), CC BY-NC-SA 4.0.

Opinions are a row for each person and axis; people are not named, so nobody is known to have rated two songs.
Votes are pairs of songs whose means over people and axes differ by .5 or more. Pairs are drawn within small sets of
songs, which are the groups: a song is never on both sides of a split.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffdpo.data.importers.base import (
    Importer,
    PreferenceImport,
    SoundFiles,
    find_tables,
    is_swapped,
    root_of,
    text_digest,
)
from diffdpo.data.importers.records import Record, SoundSource, read_records
from diffdpo.data.votes import OpinionRow, VoteRow
from diffdpo.errors import DataError

SONGEVAL_COLUMNS = ("file_name", "gender", "annotation")
SONGEVAL_AXES = ("Coherence", "Musicality", "Memorability", "Clarity", "Naturalness")
LEAST_GAP = 0.5
"""Least difference of two means that makes a pair."""
SET_SIZE = 8
"""Songs that are paired with each other."""
PAIRS_PER_SONG = 4
SONGEVAL_LAYOUT = "metadata.jsonl, with mp3/"


@dataclass(frozen=True)
class AnnotatedSong:
    """A song of SongEval: its name, and the values that each of its raters gave on each axis."""

    name: str
    values: tuple[Mapping[str, float], ...]

    @property
    def mean(self) -> float:
        """The mean over raters and axes."""
        return math.fsum(value for axes in self.values for value in axes.values()) / (
            len(self.values) * len(SONGEVAL_AXES)
        )


def read_songeval(path: Path, license_name: str) -> PreferenceImport:
    """Opinions per rater and axis, and pairs by the means."""
    table = find_tables(path, ("metadata.jsonl",), SONGEVAL_LAYOUT)[0]
    sound_files = SoundFiles(root_of(path))
    songs: dict[str, AnnotatedSong] = {}
    sounds: dict[str, SoundSource] = {}
    for record in read_records(table, SONGEVAL_COLUMNS):
        name = record.required_text("file_name")
        if name in songs:
            raise DataError(f"{record.location}: file_name {name!r} is there twice")
        songs[name] = AnnotatedSong(name, _values(record))
        sound = sound_files.resolve(record, "file_name")
        if sound is not None:
            sounds[name] = sound
    opinions: list[OpinionRow] = []
    votes: list[VoteRow] = []
    for members in song_sets(songs.values()):
        group = text_digest(*(song.name for song in members))
        opinions += [row for song in members for row in _opinions(song, group, license_name)]
        votes += [_vote(*pair, group, license_name) for pair in pair_by_means(members)]
    return PreferenceImport(votes=votes, opinions=opinions, sounds=sounds, notes=sound_files.notes())


def _values(record: Record) -> tuple[Mapping[str, float], ...]:
    """What each rater of a song gave, by axis."""
    people = record.cells["annotation"]
    if not isinstance(people, list) or not people:
        raise DataError(f"{record.location}: annotation must be a list of objects, one a rater")
    rows = []
    for number, person in enumerate(people, start=1):
        if not isinstance(person, dict):
            raise DataError(f"{record.location}: annotation {number} must be an object of axes")
        row = Record(f"{record.location}, annotation {number}", person, record.file)
        for axis in SONGEVAL_AXES:
            row.required_text(axis)
        rows.append({axis: row.number(axis, 1, 5) for axis in SONGEVAL_AXES})
    return tuple(rows)


def _opinions(song: AnnotatedSong, group: str, license_name: str) -> Iterator[OpinionRow]:
    for number, values in enumerate(song.values, start=1):
        for axis, value in values.items():
            yield OpinionRow(
                opinion_id=f"{song.name}-{number}-{axis.lower()}",
                source=SONGEVAL.source,
                group=group,
                song=song.name,
                axis=axis.lower(),
                scale="stars",
                value=value,
                license=license_name,
            )


def song_sets(songs: Iterable[AnnotatedSong]) -> list[list[AnnotatedSong]]:
    """The songs in sets of SET_SIZE, in an order that follows from their names."""
    order = sorted(songs, key=lambda song: text_digest(song.name, "set"))
    return [order[begin : begin + SET_SIZE] for begin in range(0, len(order), SET_SIZE)]


def pair_by_means(members: Sequence[AnnotatedSong]) -> Iterator[tuple[AnnotatedSong, AnnotatedSong]]:
    """Pairs (better song, worse song) of a set whose means differ by LEAST_GAP or more.

    Every song meets the PAIRS_PER_SONG songs behind it in the circle of the set.
    """
    pairs = {
        frozenset((place, (place + step) % len(members)))
        for place in range(len(members))
        for step in range(1, min(PAIRS_PER_SONG, len(members) - 1) + 1)
    }
    for first, second in sorted(tuple(sorted(pair)) for pair in pairs):
        better, worse = sorted((members[first], members[second]), key=lambda song: -song.mean)
        if better.mean - worse.mean >= LEAST_GAP - 1e-9:
            yield better, worse


def _vote(better: AnnotatedSong, worse: AnnotatedSong, group: str, license_name: str) -> VoteRow:
    vote_id = text_digest(better.name, worse.name)
    songs = (worse.name, better.name) if is_swapped(vote_id) else (better.name, worse.name)
    return VoteRow(
        vote_id=vote_id,
        source=SONGEVAL.source,
        group=group,
        song_a=songs[0],
        song_b=songs[1],
        answer="b" if is_swapped(vote_id) else "a",
        license=license_name,
    )


SONGEVAL = Importer(
    source="songeval",
    license="CC-BY-NC-SA-4.0",
    attribution="SongEval (Yao et al. 2025), ASLP-lab/SongEval",
    layout=SONGEVAL_LAYOUT,
    read=read_songeval,
)
