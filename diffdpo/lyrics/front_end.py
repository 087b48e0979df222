"""Lyrics of DiffRhythm: LRC lines, their phoneme tokens, and the tokens' places on the frame axis."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from diffdpo.data.lyrics_files import is_file_name
from diffdpo.errors import DataError
from diffdpo.lyrics.lrc import Lrc, TimedWords, is_untimed, parse_lrc
from diffdpo.lyrics.phonemes import (
    BOUNDARY,
    Language,
    main_language,
    phonemes,
)
from diffdpo.lyrics.timing import plan_lyrics
from diffdpo.progress import log
from diffdpo.runs import read_json

TokenLine = tuple[float, tuple[int, ...]]
"""Start in seconds, and tokens."""
LineEnd = Literal["whole", "cut", "drop"]
VOCABULARY_VARIABLE = "DIFFDPO_DIFFRHYTHM_VOCAB"
LYRICS_FRAMES_PER_SECOND = 44100 / 2048


def place_tokens(
    lines: Sequence[TokenLine], frames: int, frames_per_second: float
) -> Int[Tensor, " {frames}"]:
    """Tokens on the frame axis: one a frame from the start of each line on, 0 elsewhere.

    A line that starts before the previous line's tokens end is moved behind them.
    """
    tokens = torch.zeros(frames, dtype=torch.int64)
    free = 0
    for start, line in lines:
        first = max(int(start * frames_per_second), free)
        line_tokens = line[: max(0, frames - first)]
        tokens[first : first + len(line_tokens)] = torch.tensor(line_tokens, dtype=torch.int64)
        free = first + len(line)
    return tokens


def lines_within(lines: Sequence[TokenLine], start_s: float, stop_s: float) -> tuple[TokenLine, ...]:
    """The lines that begin inside an excerpt, with starts relative to the excerpt's; tokens may pass its end."""
    return tuple((at - start_s, tokens) for at, tokens in lines if start_s <= at < stop_s)


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """The vocabulary of a checkpoint, phonemes to numbers, from its repository's `g2p/g2p/vocab.json`."""
    content = read_json(Path(path))
    vocabulary = content.get("vocab", content) if isinstance(content, dict) else content
    numbers = isinstance(vocabulary, dict) and all(type(number) is int for number in vocabulary.values())
    if not numbers or not {",", ".", BOUNDARY} <= vocabulary.keys() or min(vocabulary.values()) < 0:
        raise DataError(f'{path}: no phoneme vocabulary; expected {{"vocab": {{",": 0, ".": 1, …}}}}')
    return vocabulary


class EncodedLyrics(NamedTuple):
    """Lyrics as timed lines of tokens, with the phonemes of each line, and warnings about changed lines."""

    lines: tuple[TokenLine, ...]
    warnings: tuple[str, ...]
    phonemes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LyricsFrontEnd:
    """LRC or plain lyrics to timed lines of tokens: a phoneme's number + 1, full stops inside a line as commas, and
    one full stop behind every line. Phonemes outside the vocabulary are left out with a warning.
    """

    vocabulary: Mapping[str, int] = field(repr=False)
    frames_per_second: float = LYRICS_FRAMES_PER_SECOND
    end: LineEnd = "whole"
    """The last line. whole: it starts earlier where its tokens would run past the end; cut: its tokens are cut, as
    published; drop: it is left out, as published for networks of 2048 frames."""

    @property
    def size(self) -> int:
        """The largest token: `text_num_embeds` of the network that goes with the vocabulary."""
        return max(self.vocabulary.values()) + 1

    def lines(self, lyrics: str, language: str | None, duration_s: float) -> tuple[TokenLine, ...]:
        """Timed lines of tokens, as a LyricsEncoder of the model; warnings go to the terminal."""
        encoding = self.encode(lyrics, language, duration_s)
        for warning in encoding.warnings:
            log(f"warning: lyrics: {warning}")
        return encoding.lines

    def encode(self, lyrics: str, language: str | None, duration_s: float) -> EncodedLyrics:
        """Timed lines of tokens, in order. Lyrics without any time are timed by `plan_lyrics` first."""
        if is_file_name(lyrics):
            raise DataError(f"the lyrics {lyrics.strip()!r} are the name of a file; give the words in it")
        lrc = parse_lrc(lyrics, duration_s=duration_s)
        warnings = list(lrc.warnings)
        if is_untimed(lyrics):
            song = plan_lyrics(lyrics, duration_s)
            lrc = Lrc(tuple(TimedWords(p.start_s, p.words, p.number) for p in song.lines), ())
            warnings = ["no times: they were planned, see `diffdpo lyrics plan`", *song.warnings]
        default = _language(language, lyrics)
        lines: list[TokenLine] = []
        line_phonemes: list[tuple[str, ...]] = []
        for start, words, number in lrc.lines[: -1 if self.end == "drop" else None]:
            phones = phonemes(words, default)
            if unknown_phonemes := sorted(set(phones) - self.vocabulary.keys()):
                warnings.append(
                    f"line {number}: not in the vocabulary, left out: {' '.join(unknown_phonemes)}"
                )
            if tokens := self.tokens(phones):
                lines.append((start, tokens))
                line_phonemes.append(tuple(phones))
            else:
                warnings.append(f"line {number}: no phonemes to sing: {words!r}")
        if self.end == "whole":
            lines, fit_warnings = self._fit(lines, int(duration_s * self.frames_per_second))
            warnings += fit_warnings
        return EncodedLyrics(tuple(lines), tuple(warnings), tuple(line_phonemes))

    def tokens(self, phones: Sequence[str]) -> tuple[int, ...]:
        """A line's tokens and a full stop; none if the vocabulary has none of the phonemes."""
        comma, stop = self.vocabulary[","] + 1, self.vocabulary["."] + 1
        numbers = [self.vocabulary[phone] + 1 for phone in phones if phone in self.vocabulary]
        return (*(comma if token == stop else token for token in numbers), stop) if numbers else ()

    def _fit(self, lines: Sequence[TokenLine], frames: int) -> tuple[list[TokenLine], list[str]]:
        """Earlier starts for the lines whose tokens would run past the end, and a warning for each."""
        first: list[int] = []
        free = 0
        for start, tokens in lines:
            first.append(max(int(start * self.frames_per_second), free))
            free = first[-1] + len(tokens)
        placements, warnings, limit = list(lines), [], frames
        for i in reversed(range(len(lines))):
            limit -= len(lines[i][1])
            if first[i] <= limit:
                break
            start_s, tokens = lines[i]
            # In the middle of a frame, so that rounding keeps the frame.
            new_start_s = (max(0, limit) + 0.5) / self.frames_per_second
            placements[i] = (new_start_s, tokens)
            warnings.append(
                f"the line at {start_s:.2f} s is placed at {new_start_s:.2f} s, or its end would be cut off"
            )
        if limit < 0:
            warnings.append(
                f"the lyrics need {-limit / self.frames_per_second:.1f} s more than there are; cut"
            )
        return placements, warnings[::-1]


def front_end(
    path: str = "", *, embeddings: int | None = None, frames_per_second: float = LYRICS_FRAMES_PER_SECOND
) -> LyricsFrontEnd | None:
    """The front end with the vocabulary at a path, else at DIFFDPO_DIFFRHYTHM_VOCAB; None without either.

    DataError if the vocabulary is larger than `embeddings`, the number of a network's embeddings.
    """
    location = path or os.environ.get(VOCABULARY_VARIABLE, "")
    if not location:
        return None
    reader = LyricsFrontEnd(read_vocabulary(location), frames_per_second)
    if embeddings is not None and reader.size > embeddings:
        raise DataError(
            f"{location}: {reader.size} phonemes, but the network has embeddings for {embeddings} only"
        )
    return reader


def _language(language: str | None, lyrics: str) -> Language:
    if language is None:
        return main_language(lyrics)
    for code in ("en", "zh"):
        if re.fullmatch(rf"{code}([-_].*)?", language.lower()):
            return code
    raise DataError(f"lyrics in {language!r} cannot be read; this front end knows en and zh")
