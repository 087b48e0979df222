"""The votes table: which of two songs a listener preferred; and the opinions table: what a listener said of one.

Votes come from `diffdpo listen`, or from public data sets through an importer. A side is named by its position: `a`
is the song that was presented on the left or first, so that a preference for a position can be told from one for a
song.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from diffdpo.data import tables
from diffdpo.data.schema import TableSpec
from diffdpo.errors import DataError

Answer = Literal["a", "b", "tie", "both_bad"]
ANSWERS: tuple[str, ...] = get_args(Answer)
MAX_STRENGTH = 3
"""Strengths: 0 not asked for, 1 slightly, 2 clearly, 3 much better."""
OPINION_SCALES: Mapping[str, tuple[float, float]] = {
    "thumb": (-1.0, 1.0),
    "stars": (1.0, 5.0),
    "mushra": (0.0, 100.0),
}
"""Lowest and highest value of an opinion on each scale."""


@dataclass(frozen=True, kw_only=True)
class VoteRow:
    """One listener's answer to one pair of songs, on one axis."""

    vote_id: str
    """Unique within the table."""
    source: str
    """Study or data set that the vote comes from."""
    rater: str = ""
    """Pseudonym of the listener; empty where the data set names none."""
    prompt_id: str = ""
    """Id of the prompt of both songs, where it has one."""
    prompt: str = ""
    """Text of the prompt."""
    lyrics: str = ""
    """Lyrics of the prompt."""
    group: str = ""
    """The group of the prompt: prompts of one group never fall on both sides of a split."""
    samples_a: str = ""
    """The samples folder of song a, relative to the table's folder; empty for songs that are plain files."""
    samples_b: str = ""
    """The same of song b."""
    song_a: str
    """Sample id of the song presented on the left or first; without a samples folder the path of its file, relative
    to the table's folder, or its id in the data set."""
    song_b: str
    """The same of the song on the right or second."""
    sha256_a: str = ""
    """Hash of the sound (canonical PCM), as in the samples table; empty where the sound is not at hand."""
    sha256_b: str = ""
    """The same of song b."""
    begin_a_s: float = 0.0
    """Start of the excerpt in its song, in seconds."""
    end_a_s: float = 0.0
    """End of the excerpt; 0 for the whole song."""
    begin_b_s: float = 0.0
    """The same of song b."""
    end_b_s: float = 0.0
    """The same of song b."""
    system_a: str = ""
    """Name of the model that generated song a."""
    system_b: str = ""
    """The same of song b."""
    axis: str = ""
    """What was asked for, such as `musicality` or `prompt`; empty for the preference overall."""
    answer: str
    """`a`, `b`, `tie` or `both_bad`."""
    strength: int = 0
    """How much better: 1 slightly, 2 clearly, 3 much; 0 where it was not asked for."""
    confidence: float = 0.0
    """The listener's own, from 0 to 1; 0 where it was not asked for."""
    heard_a_s: float = 0.0
    """Seconds of song a that were played before the answer."""
    heard_b_s: float = 0.0
    """The same of song b."""
    spans_a: tuple[tuple[float, float], ...] = ()
    """Bad moments of song a that the listener marked, (start, stop) in seconds of the song."""
    spans_b: tuple[tuple[float, float], ...] = ()
    """The same of song b."""
    gold: str = ""
    """The right answer of a control pair (`a`, `b` or `tie`); empty for a real pair. Control pairs are never
    preferences: they measure the listener."""
    repeat_of: str = ""
    """Id of the vote on the same pair with its sides exchanged; empty for a first answer."""
    rater_group: Mapping[str, str] = field(default_factory=dict)
    """What the listener said about themselves, such as `language` or `background`; voluntary."""
    consent: str = ""
    """Version and language of the consent that the vote was given under, such as `3f2a91c0/en`."""
    license: str = ""
    """License of the vote and of its songs; trained models inherit it."""
    comment: str = ""
    """What the listener wrote."""
    created_at: float = 0.0
    """Seconds since 1970, UTC; 0 where it is unknown."""
    split: str = ""
    """Part of the data set, where it has parts."""


@dataclass(frozen=True, kw_only=True)
class OpinionRow:
    """One listener's value for one song."""

    opinion_id: str
    """Unique within the table."""
    source: str
    """Study or data set that the opinion comes from."""
    rater: str = ""
    """Pseudonym of the listener; empty where the data set names none."""
    prompt_id: str = ""
    """Id of the song's prompt, where it has one."""
    prompt: str = ""
    """Text of the prompt."""
    group: str = ""
    """The group of the prompt, as in a vote."""
    samples: str = ""
    """As in a vote: the samples folder relative to the table's folder, or empty."""
    song: str
    """Sample id of the song; without a samples folder the path of its file, or its id in the data set."""
    sha256: str = ""
    """Hash of the sound, as in a vote."""
    system: str = ""
    """Name of the model that generated the song."""
    axis: str = ""
    """What was asked for; empty for the opinion overall."""
    scale: str
    """`thumb` (-1 or 1), `stars` (1 to 5) or `mushra` (0 to 100)."""
    value: float
    """The value on its scale."""
    heard_s: float = 0.0
    """Seconds of the song that were played before the answer."""
    spans: tuple[tuple[float, float], ...] = ()
    """Bad moments that the listener marked, (start, stop) in seconds of the song."""
    control: str = ""
    """`reference` for the hidden reference of a MUSHRA page, `anchor-…` for its anchors; empty for a song."""
    trial: str = ""
    """Songs with the same trial were rated on one page."""
    rater_group: Mapping[str, str] = field(default_factory=dict)
    """What the listener said about themselves, as in a vote."""
    consent: str = ""
    """Version and language of the consent, as in a vote."""
    license: str = ""
    """License of the opinion and of its song."""
    comment: str = ""
    """What the listener wrote."""
    created_at: float = 0.0
    """Seconds since 1970, UTC; 0 where it is unknown."""


VOTES = TableSpec("votes", VoteRow, key=("source", "vote_id"))
OPINIONS = TableSpec("opinions", OpinionRow, key=("source", "opinion_id"))


def check_vote(row: VoteRow, location: str) -> None:
    """DataError for a row that is no vote; `location` is where it was read, file and line or table."""
    for key in ("answer", "gold"):
        value = getattr(row, key)
        if value not in ANSWERS and (key == "answer" or value):
            raise DataError(f"{location}: {key} must be one of {', '.join(ANSWERS)}, got {value!r}")
    if not 0 <= row.strength <= MAX_STRENGTH:
        raise DataError(f"{location}: strength must be from 0 to {MAX_STRENGTH}, got {row.strength}")
    _check_spans((*row.spans_a, *row.spans_b), location)


def check_opinion(row: OpinionRow, location: str) -> None:
    """DataError for a row that is no opinion."""
    if row.scale not in OPINION_SCALES:
        raise DataError(f"{location}: scale must be one of {', '.join(OPINION_SCALES)}, got {row.scale!r}")
    low, high = OPINION_SCALES[row.scale]
    if not low <= row.value <= high:
        raise DataError(f"{location}: {row.scale} must be from {low:g} to {high:g}, got {row.value:g}")
    _check_spans(row.spans, location)


def _check_spans(spans: Iterable[Sequence[float]], location: str) -> None:
    for start, stop in spans:
        if not (math.isfinite(start) and math.isfinite(stop) and 0 <= start < stop):
            raise DataError(
                f"{location}: a span needs 0 <= start < stop, in seconds, got {start:g} to {stop:g}"
            )


def read_votes(folder: Path) -> list[VoteRow]:
    """All votes of a folder. DataError if it holds none, or for a row that is no vote."""
    rows = tables.read_rows(folder, VOTES)
    if not rows:
        raise DataError(
            f"{folder}: holds no votes; run `diffdpo listen`, or import some with `diffdpo store add`"
        )
    for row in rows:
        check_vote(row, f"{folder / VOTES.folder}, vote {row.vote_id!r}")
    return rows


def read_opinions_table(folder: Path) -> list[OpinionRow]:
    """All opinions of a folder, perhaps none. DataError for a row that is no opinion."""
    rows = tables.read_rows(folder, OPINIONS)
    for row in rows:
        check_opinion(row, f"{folder / OPINIONS.folder}, opinion {row.opinion_id!r}")
    return rows
