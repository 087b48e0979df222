"""The songs of votes: where their sound is, which excerpt was heard, and the text of their prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffdpo.data.samples import Samples
from diffdpo.data.votes import VoteRow
from diffdpo.errors import DataError


@dataclass(frozen=True)
class VoteSong:
    """An excerpt of a song that somebody voted on."""

    sha256: str
    """Hash of the sound; empty where the vote has none."""
    path: Path
    """The file, whether it exists or not."""
    begin_s: float = 0.0
    end_s: float = 0.0
    """End of the excerpt; 0 for the whole song."""


def vote_songs(folder: Path, row: VoteRow) -> tuple[VoteSong, VoteSong]:
    """The two songs of a vote of the table in `folder`."""
    return (
        VoteSong(row.sha256_a, _path(folder, row.samples_a, row.song_a), row.begin_a_s, row.end_a_s),
        VoteSong(row.sha256_b, _path(folder, row.samples_b, row.song_b), row.begin_b_s, row.end_b_s),
    )


def _path(folder: Path, samples: str, song: str) -> Path:
    return Samples(folder / samples).audio(song) if samples else folder / song


def prompt_text(folder: Path, row: VoteRow) -> str:
    """The text of a vote's prompt: its own, or that of the samples folder."""
    if row.prompt or not row.samples_a:
        return row.prompt
    return _texts(folder / row.samples_a).get(row.prompt_id, "")


@cache
def _texts(samples: Path) -> dict[str, str]:
    try:
        return {prompt.id: prompt.text or "" for prompt in Samples(samples).prompts()}
    except DataError:
        return {}


def vote_group(row: VoteRow) -> str:
    """What a split must not divide: the group of the prompt, else the prompt."""
    return row.group or row.prompt_id or row.prompt


def preferences(rows: Sequence[VoteRow], axis: str = "") -> Iterator[VoteRow]:
    """First answers to real pairs on one axis: no control pairs, no repeats."""
    return (row for row in rows if not row.gold and not row.repeat_of and row.axis == axis)
