"""LRC: lines of lyrics with a time each, and what is wrong with the lines that cannot be sung."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diffdpo.lyrics.doubts import cut_repeat, explain_doubt, explain_silence
from diffdpo.lyrics.phonemes import language_runs, unreadable_letters
from diffdpo.lyrics.section_names import read_header
from diffdpo.lyrics.sections import METADATA_TAG, TIME_TAG, lyric_lines, read_sections
from diffdpo.lyrics.syllables import syllables
from diffdpo.lyrics.timing import MAX_SYLLABLE_RATE

STAMP = r"\[(\d+):(\d{1,2}(?:[.,:]\d+)?)\]"
TIMED_LINE = re.compile(rf"\s*((?:{STAMP}\s*)+)(.*)")
OFFSET = re.compile(r"\s*\[offset:\s*([+-]?\d+)\s*\]\s*", re.IGNORECASE)
WORD_TIME = re.compile(r"<\d+:\d+(?:\.\d+)?>")


class TimedWords(NamedTuple):
    """A line of lyrics with the time of its start."""

    start_s: float
    words: str
    number: int
    """Number of the line in the file."""


@dataclass(frozen=True)
class Lrc:
    """A parsed LRC text: the lines that can be sung, in order of time, and a warning for each that cannot."""

    lines: tuple[TimedWords, ...]
    warnings: tuple[str, ...]


def parse_lrc(text: str, *, duration_s: float | None = None) -> Lrc:
    """The lines `[mm:ss.xx]words` of an LRC text; every line that cannot be sung gives a warning.

    A line may have several times. `[offset:+ms]` makes all lines earlier; title, author and the like are skipped;
    `<mm:ss.xx>` word times are left out. With a duration, lines that begin after it are left out.
    """
    lines: list[TimedWords] = []
    warnings: list[str] = []
    offset_s = 0.0
    for number, raw in lyric_lines(text):
        if offset := OFFSET.fullmatch(raw):
            offset_s = int(offset[1]) / 1000
        elif match := TIMED_LINE.fullmatch(raw):
            words = " ".join(WORD_TIME.sub(" ", match[4]).split())
            if words != " ".join(match[4].split()):
                warnings.append(f"line {number}: times of single words are not used")
            words, problems = sung_words(words)
            warnings += [f"line {number}: {problem}" for problem in problems]
            if words:
                lines += [
                    TimedWords(_seconds(*stamp), words, number) for stamp in re.findall(STAMP, match[1])
                ]
        elif raw.strip() and not METADATA_TAG.fullmatch(raw):
            tag = " a structure tag, and DiffRhythm knows none;" if read_header(raw) else ""
            warnings.append(f"line {number}:{tag} no [mm:ss.xx] time, not sung: {raw.strip()!r}")
    offset_lines = [line._replace(start_s=max(0.0, line.start_s - offset_s)) for line in lines]
    sorted_lines = sorted(offset_lines, key=lambda line: line.start_s)
    if len({line.number for line in lines}) == len(lines) and sorted_lines != offset_lines:
        warnings.append("lines are not in order of time; sorted")
    lines_in_song = [line for line in sorted_lines if duration_s is None or line.start_s < duration_s]
    for line in sorted_lines[len(lines_in_song) :]:
        warnings.append(
            f"line {line.number}: starts at {line.start_s:.2f} s, behind the end at {duration_s:.2f} s"
        )
    return Lrc(tuple(lines_in_song), tuple(warnings + warn_too_close(lines_in_song, duration_s)))


def _seconds(minutes: str, seconds: str) -> float:
    return 60 * int(minutes) + float(re.sub("[,:]", ".", seconds))


def is_untimed(text: str) -> bool:
    """Whether lyrics have words but no times, so that `plan_lyrics` must time them."""
    if any(TIME_TAG.match(line) for _, line in lyric_lines(text)):
        return False
    return any(section.lines for section in read_sections(text)[0])


def sung_words(words: str) -> tuple[str, list[str]]:
    """The words of a timed line that can be sung, "" for none, and what is wrong with the others."""
    problems: list[str] = []
    if not words:
        return "", ["a time without words"]
    if header := read_header(words):
        name = words.removesuffix(header.words).strip() if header.words else words
        problems.append(f"{name} is a structure tag, and DiffRhythm knows none; not sung")
        words = header.words
    elif silence := explain_silence(words):
        return "", [f"{silence}: {words!r}"]
    words, repeat = cut_repeat(words)
    if repeat:
        problems.append(f"{repeat!r}: a repeat, which is not sung; write the line again with its time")
    if not words:
        return "", problems
    is_sung = bool(language_runs(words))
    if letters := unreadable_letters(words):
        outcome = "the rest is sung" if is_sung else "not sung"
        problems.append(f"letters neither Latin nor Chinese cannot be read: {letters!r}; {outcome}")
    elif not is_sung:
        problems.append(f"nothing to sing: {words!r}")
    elif doubt := explain_doubt(words):
        problems.append(f"{doubt}: {words!r}")
    return words if is_sung else "", problems


def warn_too_close(lines: Sequence[TimedWords], duration_s: float | None) -> list[str]:
    """A warning for each line that would have to be sung at more than 8 syllables a second."""
    ends = [(next_line.start_s, f"until line {next_line.number}") for next_line in lines[1:]]
    if duration_s is not None:
        ends.append((duration_s, "until the end"))
    warnings = []
    for line, (end_s, end_name) in zip(lines, ends, strict=False):
        count, length = syllables(line.words), end_s - line.start_s
        if count > MAX_SYLLABLE_RATE * length:
            warnings.append(
                f"line {line.number}: {count} syllables in the {length:.2f} s {end_name}; "
                f"words are lost below {count / MAX_SYLLABLE_RATE:.2f} s"
            )
    return warnings
