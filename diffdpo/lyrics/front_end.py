"""Lyrics of DiffRhythm: LRC lines, their phoneme tokens, and these tokens placed on the frame axis."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from diffdpo.errors import DataError
from diffdpo.lyrics.phonemes import BOUNDARY, Language, foreign, mostly, phonemes, runs
from diffdpo.lyrics.timing import ABOUT, FASTEST, HAS_TIME, plan, read_sections, syllables
from diffdpo.progress import log
from diffdpo.runs import read_json

STAMP = r"\[(\d+):(\d{1,2}(?:[.,:]\d+)?)\]"
TIMED = re.compile(rf"\s*((?:{STAMP}\s*)+)(.*)")
OFFSET = re.compile(r"\s*\[offset:\s*([+-]?\d+)\s*\]\s*", re.IGNORECASE)
STRUCTURE = re.compile(r"\s*\[[^\[\]:]+\]\s*")
WORD_TIME = re.compile(r"<\d+:\d+(?:\.\d+)?>")

Line = tuple[float, tuple[int, ...]]
"""Start in seconds, and tokens."""
LineEnd = Literal["whole", "cut", "drop"]
VOCABULARY_VARIABLE = "DIFFDPO_DIFFRHYTHM_VOCAB"
FRAMES_PER_SECOND = 44100 / 2048


class TimedWords(NamedTuple):
    """One line as it is sung."""

    start_s: float
    words: str
    number: int
    """Of the line in the file."""


@dataclass(frozen=True)
class Lrc:
    """A parsed LRC text: what can be sung, in order of time, and what cannot with the reason."""

    lines: tuple[TimedWords, ...]
    warnings: tuple[str, ...]


def parse_lrc(text: str, *, duration_s: float | None = None) -> Lrc:
    """Read `[mm:ss.xx]words` lines. Nothing is dropped silently: every unusable line gives a warning.

    A line may have several times. `[offset:+ms]` makes all lines earlier; title, author and the like are skipped;
    `<mm:ss.xx>` word times are left out. With a duration, what begins behind it is left out.
    """
    lines: list[TimedWords] = []
    warnings: list[str] = []
    offset_s = 0.0
    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        if offset := OFFSET.fullmatch(raw):
            offset_s = int(offset[1]) / 1000
        elif match := TIMED.fullmatch(raw):
            words = " ".join(WORD_TIME.sub(" ", match[4]).split())
            if words != " ".join(match[4].split()):
                warnings.append(f"line {number}: times of single words are not used")
            trouble = unsingable(words)
            if trouble:
                warnings.append(f"line {number}: {trouble}")
            if runs(words) and not STRUCTURE.fullmatch(words):
                lines += [
                    TimedWords(_seconds(*stamp), words, number) for stamp in re.findall(STAMP, match[1])
                ]
        elif raw.strip() and not ABOUT.fullmatch(raw):
            tag = " a structure tag, and DiffRhythm knows none;" if STRUCTURE.fullmatch(raw) else ""
            warnings.append(f"line {number}:{tag} no [mm:ss.xx] time, not sung: {raw.strip()!r}")
    shifted = [line._replace(start_s=max(0.0, line.start_s - offset_s)) for line in lines]
    ordered = sorted(shifted, key=lambda line: line.start_s)
    if len({line.number for line in lines}) == len(lines) and ordered != shifted:
        warnings.append("lines are not in order of time; sorted")
    kept = [line for line in ordered if duration_s is None or line.start_s < duration_s]
    for line in ordered[len(kept) :]:
        warnings.append(
            f"line {line.number}: starts at {line.start_s:.2f} s, behind the end at {duration_s:.2f} s"
        )
    return Lrc(tuple(kept), tuple(warnings + too_close(kept, duration_s)))


def _seconds(minutes: str, seconds: str) -> float:
    return 60 * int(minutes) + float(re.sub("[,:]", ".", seconds))


def untimed(text: str) -> bool:
    """Whether these are lyrics without a single time, for `planner.plan`."""
    if any(HAS_TIME.match(line) for line in text.splitlines()):
        return False
    return any(section.lines for section in read_sections(text)[0])


def unsingable(words: str) -> str:
    """What of the words of a line cannot be sung as written; empty if nothing."""
    if not words:
        return "a time without words"
    if STRUCTURE.fullmatch(words):
        return f"{words} is a structure tag, and DiffRhythm knows none; not sung"
    if letters := foreign(words):
        rest = "the rest is sung" if runs(words) else "not sung"
        return f"letters neither Latin nor Chinese cannot be read: {letters!r}; {rest}"
    if not runs(words):
        return f"nothing to sing: {words!r}"
    return "" if any(char.isalpha() for char in words) else f"only a number, read out: {words!r}"


def too_close(lines: Sequence[TimedWords], duration_s: float | None) -> list[str]:
    """A warning for each line that would have to be sung at more than 8 syllables a second."""
    ends = [(after.start_s, f"until line {after.number}") for after in lines[1:]]
    if duration_s is not None:
        ends.append((duration_s, "until the end"))
    found = []
    for line, (end_s, until) in zip(lines, ends, strict=False):
        count, length = syllables(line.words), end_s - line.start_s
        if count > FASTEST * length:
            found.append(
                f"line {line.number}: {count} syllables in the {length:.2f} s {until}; "
                f"words are lost below {count / FASTEST:.2f} s"
            )
    return found


def place_tokens(lines: Sequence[Line], frames: int, frames_per_second: float) -> Int[Tensor, " {frames}"]:
    """One token a frame from the start of each line on, 0 elsewhere; a line never overwrites the one before."""
    tokens = torch.zeros(frames, dtype=torch.int64)
    free = 0
    for start, line in lines:
        first = max(int(start * frames_per_second), free)
        kept = line[: max(0, frames - first)]
        tokens[first : first + len(kept)] = torch.tensor(kept, dtype=torch.int64)
        free = first + len(line)
    return tokens


def lines_within(lines: Sequence[Line], start_s: float, stop_s: float) -> tuple[Line, ...]:
    """The lines that begin inside an excerpt, with starts in its time. Their last tokens may lie behind its end."""
    return tuple((at - start_s, tokens) for at, tokens in lines if start_s <= at < stop_s)


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """The phonemes of a checkpoint and their numbers, from its repository's `g2p/g2p/vocab.json`."""
    content = read_json(Path(path))
    vocabulary = content.get("vocab", content) if isinstance(content, dict) else content
    numbers = isinstance(vocabulary, dict) and all(type(number) is int for number in vocabulary.values())
    if not numbers or not {",", ".", BOUNDARY} <= vocabulary.keys() or min(vocabulary.values()) < 0:
        raise DataError(f'{path}: no phoneme vocabulary; expected {{"vocab": {{",": 0, ".": 1, …}}}}')
    return vocabulary


class Encoded(NamedTuple):
    """Lines as tokens, what was done about those that did not fit, and the phonemes they were made of."""

    lines: tuple[Line, ...]
    warnings: tuple[str, ...]
    phonemes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LyricsFrontEnd:
    """LRC or plain lyrics to timed lines of tokens: a phoneme's number + 1, full stops inside a line as commas, and
    one full stop behind every line. What the vocabulary lacks is left out with a warning.
    """

    vocabulary: Mapping[str, int] = field(repr=False)
    frames_per_second: float = FRAMES_PER_SECOND
    end: LineEnd = "whole"
    """Of the last line. whole: it is placed earlier where its tokens would run past the end; cut: they are cut, as
    published; drop: it is left out, as published for networks of 2048 frames."""

    @property
    def size(self) -> int:
        """The largest token: `text_num_embeds` of the network that goes with the vocabulary."""
        return max(self.vocabulary.values()) + 1

    def lines(self, lyrics: str, language: str | None, duration_s: float) -> tuple[Line, ...]:
        """What the adapter asks for. Warnings go to the terminal."""
        encoded = self.encode(lyrics, language, duration_s)
        for warning in encoded.warnings:
            log(f"warning: lyrics: {warning}")
        return encoded.lines

    def encode(self, lyrics: str, language: str | None, duration_s: float) -> Encoded:
        """Timed lines of tokens, in order. Lyrics without any time are timed by `planner.plan` first."""
        lrc = parse_lrc(lyrics, duration_s=duration_s)
        warnings = list(lrc.warnings)
        if untimed(lyrics):
            song = plan(lyrics, duration_s)
            lrc = Lrc(tuple(TimedWords(p.start_s, p.words, p.number) for p in song.lines), ())
            warnings = ["no times: they were planned, see `diffdpo lyrics plan`", *song.warnings]
        default = _language(language, lyrics)
        lines: list[Line] = []
        spoken: list[tuple[str, ...]] = []
        for start, words, number in lrc.lines[: -1 if self.end == "drop" else None]:
            phones = phonemes(words, default)
            if unknown := sorted(set(phones) - self.vocabulary.keys()):
                warnings.append(f"line {number}: not in the vocabulary, left out: {' '.join(unknown)}")
            if tokens := self.tokens(phones):
                lines.append((start, tokens))
                spoken.append(tuple(phones))
            else:
                warnings.append(f"line {number}: no phonemes to sing: {words!r}")
        if self.end == "whole":
            lines, moved = self._fit(lines, int(duration_s * self.frames_per_second))
            warnings += moved
        return Encoded(tuple(lines), tuple(warnings), tuple(spoken))

    def tokens(self, phones: Sequence[str]) -> tuple[int, ...]:
        """A line's tokens with the full stop behind; none if the vocabulary has none of the phonemes."""
        comma, stop = self.vocabulary[","] + 1, self.vocabulary["."] + 1
        known = [self.vocabulary[phone] + 1 for phone in phones if phone in self.vocabulary]
        return (*(comma if token == stop else token for token in known), stop) if known else ()

    def _fit(self, lines: Sequence[Line], frames: int) -> tuple[list[Line], list[str]]:
        """Earlier starts for the lines whose tokens would run past the end, and a warning for each."""
        first: list[int] = []
        free = 0
        for start, tokens in lines:
            first.append(max(int(start * self.frames_per_second), free))
            free = first[-1] + len(tokens)
        fitted, moved, limit = list(lines), [], frames
        for i in reversed(range(len(lines))):
            limit -= len(lines[i][1])
            if first[i] <= limit:
                break
            before, tokens = lines[i]
            at = (max(0, limit) + 0.5) / self.frames_per_second  # the middle of a frame: no rounding moves it
            fitted[i] = (at, tokens)
            moved.append(f"the line at {before:.2f} s is placed at {at:.2f} s, or its end would be cut off")
        if limit < 0:
            moved.append(f"the lyrics need {-limit / self.frames_per_second:.1f} s more than there are; cut")
        return fitted, moved[::-1]


def front_end(
    path: str = "", *, embeddings: int | None = None, frames_per_second: float = FRAMES_PER_SECOND
) -> LyricsFrontEnd | None:
    """For the vocabulary at a path, else at DIFFDPO_DIFFRHYTHM_VOCAB; None if neither is given.

    DataError if the vocabulary has tokens that a network with so many `embeddings` does not know.
    """
    where = path or os.environ.get(VOCABULARY_VARIABLE, "")
    if not where:
        return None
    reader = LyricsFrontEnd(read_vocabulary(where), frames_per_second)
    if embeddings is not None and reader.size > embeddings:
        raise DataError(
            f"{where}: {reader.size} phonemes, but the network has embeddings for {embeddings} only"
        )
    return reader


def _language(language: str | None, lyrics: str) -> Language:
    if language is None:
        return mostly(lyrics)
    for known in ("en", "zh"):
        if re.fullmatch(rf"{known}([-_].*)?", language.lower()):
            return known
    raise DataError(f"lyrics in {language!r} cannot be read; this front end knows en and zh")
