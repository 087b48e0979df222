"""From votes to a design: which answers count, as which target, on which features."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from diffdpo.data.vote_songs import VoteSong, preferences, prompt_text, vote_group, vote_songs
from diffdpo.data.votes import VoteRow, read_votes
from diffdpo.errors import DataError
from diffdpo.extractors.base import Crops, TextExtractor, join_features
from diffdpo.preferences.vote_design import VoteDesign, design_of
from diffdpo.progress import log
from diffdpo.recipes.reward_features import SongParts
from diffdpo.scorers.reward import join_text

ANSWER_TARGETS = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}
STRENGTH_TARGETS = {0: 1.0, 1: 0.75, 2: 0.9, 3: 1.0}
"""How likely the same listener would prefer the same song again, by strength, for soft labels."""


Repeat = tuple[VoteSong, VoteSong]
"""The winners of a vote and of its repeat."""


@dataclass(frozen=True)
class SongVote:
    """One vote with its songs and its prompt's text."""

    row: VoteRow
    first: VoteSong
    second: VoteSong
    text: str


def read_song_votes(
    folders: Sequence[str], axis: str, listeners: Mapping[str, str], both_bad: Literal["tie", "skip"]
) -> list[SongVote]:
    """The votes of some folders that teach a preference. DataError if there are none."""
    votes = []
    for name in folders:
        folder = Path(name)
        for row in preferences(read_votes(folder), axis):
            if any(row.rater_group.get(key) != value for key, value in listeners.items()):
                continue
            if row.answer == "both_bad" and both_bad == "skip":
                continue
            votes.append(SongVote(row, *vote_songs(folder, row), prompt_text(folder, row)))
    if not votes:
        question = f" on the axis {axis!r}" if axis else ""
        people = " of these listeners" if listeners else ""
        raise DataError(
            f"{', '.join(folders)}: no votes{question}{people} but control pairs, repeats or what is left out; "
            "collect more"
        )
    if all(vote_target(vote.row, soft=False) == 0.5 for vote in votes):
        raise DataError(
            f"{', '.join(folders)}: all {len(votes)} votes are ties or `both bad`, of which no preference can be "
            "learned; collect more"
        )
    return votes


def read_repeats(folders: Sequence[str], axis: str) -> list[Repeat]:
    """The winners of first answers and of their repeats with exchanged sides, where both were decided."""
    repeats = []
    for name in folders:
        rows = {row.vote_id: row for row in read_votes(Path(name)) if row.axis == axis and not row.gold}
        for row in rows.values():
            first = rows.get(row.repeat_of)
            if first is not None and row.answer in ("a", "b") and first.answer in ("a", "b"):
                repeats.append((winner(Path(name), first), winner(Path(name), row)))
    return repeats


def winner(folder: Path, row: VoteRow) -> VoteSong:
    """The song that a decided vote of the table in `folder` prefers."""
    return vote_songs(folder, row)[0 if row.answer == "a" else 1]


def all_songs(votes: Sequence[SongVote]) -> list[VoteSong]:
    """The songs of votes, each once."""
    return list(dict.fromkeys(song for vote in votes for song in (vote.first, vote.second)))


def with_features(votes: Sequence[SongVote], parts: SongParts, text: bool) -> list[SongVote]:
    """The votes both of whose songs have features, and a prompt where one is read; a line says how many have not.

    DataError if none is left.
    """
    usable = [
        vote
        for vote in votes
        if all(song in parts and all(map(len, parts[song].values())) for song in (vote.first, vote.second))
        and (vote.text.strip() or not text)
    ]
    if len(usable) < len(votes):
        log(
            f"{len(votes) - len(usable)} of {len(votes)} votes left out: a song is gone, silent or not the one "
            "that was voted on, or there is no prompt"
        )
    if not usable:
        raise DataError(
            "no vote is left: the songs of the votes are not where the votes say, not those that were voted on, or "
            "silent"
        )
    return usable


def vote_target(row: VoteRow, soft: bool) -> float:
    """How much the first song won: 1, 0, or 0.5 for a tie; `soft` brings slight preferences nearer to a tie."""
    target = ANSWER_TARGETS[row.answer]
    return 0.5 + (target - 0.5) * (2 * STRENGTH_TARGETS[row.strength] - 1) if soft else target


def build_design(
    votes: Sequence[SongVote],
    parts: SongParts,
    crops: Crops,
    *,
    text: tuple[str, TextExtractor] | None = None,
    soft: bool = False,
) -> VoteDesign:
    """Votes as numbers; `text` names the extractor whose text side joins the prompt."""
    embeddings = {vote.text: text[1].embed_text(vote.text) for vote in votes} if text else {}
    places: dict[tuple[VoteSong, str], int] = {}
    songs: list[np.ndarray] = []

    def place(song: VoteSong, prompt: str) -> int:
        key = (song, prompt if text else "")
        if key not in places:
            places[key] = len(songs)
            joint = [join_text(parts[song][text[0]], embeddings[prompt])] if text else []
            songs.append(join_features([*parts[song].values(), *joint], crops))
        return places[key]

    return design_of(
        songs,
        [place(vote.first, vote.text) for vote in votes],
        [place(vote.second, vote.text) for vote in votes],
        [vote_target(vote.row, soft) for vote in votes],
        ties=[ANSWER_TARGETS[vote.row.answer] == 0.5 for vote in votes],
        groups=[vote_group(vote.row) for vote in votes],
        raters=[vote.row.rater for vote in votes],
    )


def answer_counts(votes: Sequence[SongVote]) -> dict[str, int]:
    """How often each answer was given."""
    return dict(Counter(vote.row.answer for vote in votes))
