"""Lyrics without times, as sections of lines."""

import re
from typing import NamedTuple

from diffdpo.errors import DataError
from diffdpo.lyrics.doubts import check_line
from diffdpo.lyrics.section_names import SectionHeader, read_header, strip_marks

TIME_TAG = re.compile(r"\s*\[\d+:\d")
METADATA_TAG = re.compile(
    r"\s*\[(?:ar|al|ti|au|lr|by|re|ve|tool|length|tempo|section|#):.*\]\s*", re.IGNORECASE
)
"""Title, author and the like of an LRC, which are not sung."""
INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f\u2060"))
"""The byte order mark, and signs without width that pages leave between words."""


class LyricsLine(NamedTuple):
    """A line of lyrics without a time, and its number in the file."""

    text: str
    number: int


class LyricsSection(NamedTuple):
    """A section of lyrics with its tag; a section without lines is instrumental."""

    name: str
    lines: list[LyricsLine]


def lyric_lines(text: str) -> list[tuple[int, str]]:
    """The lines of lyrics with their numbers, without byte order marks and signs that cannot be seen."""
    return list(enumerate(text.translate(INVISIBLE).splitlines(), start=1))


def read_sections(lyrics: str) -> tuple[list[LyricsSection], list[str]]:
    """Sections of lyrics, by name or by empty line, and warnings: for unknown names, for lines without words, and
    for lines that are sung though they may be no lyrics."""
    sections: list[LyricsSection] = []
    warnings: list[str] = []
    is_new_section = True
    for number, raw in lyric_lines(lyrics):
        if TIME_TAG.match(raw):
            raise DataError(f"line {number}: has a time; `lyrics plan` is for lyrics without, this is an LRC")
        if METADATA_TAG.fullmatch(raw):
            continue
        words = raw.strip()
        if header := read_header(raw):
            warnings += [f"line {number}: {text}" for text in _explain_header(header, words)]
            sections.append(LyricsSection(header.name, []))
            is_new_section, words = False, header.words
        if not words:
            is_new_section = is_new_section or bool(header is None and sections and sections[-1].lines)
            continue
        words, line_warnings = check_line(words)
        warnings += [f"line {number}: {text}" for text in line_warnings]
        if words and is_new_section:
            sections.append(LyricsSection(sections[-1].name if sections else "", []))
        if words:
            sections[-1].lines.append(LyricsLine(words, number))
            is_new_section = False
    return sections, warnings


def _explain_header(header: SectionHeader, raw: str) -> list[str]:
    """Warnings about the line of a section's name."""
    warnings = []
    if not header.is_usual:
        warnings.append(
            f"[{strip_marks(raw)[0].split(':')[0].strip()}] is no tag we know; it begins a section"
        )
    if header.repeat:
        warnings.append(f"{header.repeat!r}: a repeat, which is not sung; write the lines again")
    return warnings
