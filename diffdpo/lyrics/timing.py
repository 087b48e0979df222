"""Times for lyrics without times: sections, syllables and a tempo become an LRC that a person can edit.

Lengths are whole beats. Every line and every instrumental part has a least, a usual and a largest length; the plan
lies between them at the one level that fills the song.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from diffdpo.data.lyrics_files import is_file_name
from diffdpo.errors import DataError
from diffdpo.lyrics.sections import LyricsLine, LyricsSection, read_sections
from diffdpo.lyrics.syllables import syllables

SongPartKind = Literal["intro", "line", "break", "instrumental", "outro"]
MAX_DENSITY, USUAL_DENSITY = 2.5, 1.0
"""Syllables in a beat: of the fastest lines in a plan, and of lines with room."""
MAX_SYLLABLE_RATE = 8.0
"""Syllables a second, at any tempo; faster lines lose words."""
MAX_STRETCH = 1.5
"""Largest length of a line over its usual length; in longer lines a model tends to repeat words."""
INSTRUMENTAL: dict[SongPartKind, tuple[int, int, int]] = {
    "intro": (4, 16, 32),
    "break": (4, 8, 16),
    "instrumental": (4, 16, 32),
    "outro": (4, 16, 32),
}
"""Least, usual and largest number of beats of each kind of instrumental part."""


@dataclass(frozen=True)
class SongPart:
    """A line of lyrics or an instrumental part of a plan; parts follow each other without gaps."""

    kind: SongPartKind
    section: str
    """Name of the section, from the tag in the lyrics; empty without one."""
    words: str
    number: int
    """Number of the line in the lyrics; 0 for an instrumental part."""
    syllables: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class LyricsPlan:
    """The parts of a song, from its first second to its last."""

    parts: tuple[SongPart, ...]
    tempo: float
    duration_s: float
    warnings: tuple[str, ...]

    @property
    def lines(self) -> tuple[SongPart, ...]:
        return tuple(part for part in self.parts if part.kind == "line")


class Slot(NamedTuple):
    """A part of a plan before its length is chosen: `lengths` are the least, usual and largest, in beats."""

    kind: SongPartKind
    section: str
    words: LyricsLine
    lengths: tuple[int, int, int]


def plan_lyrics(lyrics: str, duration_s: float, *, tempo: float = 100.0) -> LyricsPlan:
    """A plan of lyrics, with or without [verse] and [chorus] tags, that fills a song of `tempo` beats a minute.

    A line is never shorter than its syllables at `max_syllable_rate`, sections are separated by a break of a bar at
    least, and every line begins on a beat. Lyrics too dense for the duration are compressed into it, with a warning
    for each line. DataError for lyrics without words, or with times.
    """
    if not (math.isfinite(duration_s) and duration_s > 0 and math.isfinite(tempo) and tempo > 0):
        raise DataError(f"duration and tempo must be positive, got {duration_s} s and {tempo} beats a minute")
    if is_file_name(lyrics):
        raise DataError(f"the lyrics {lyrics.strip()!r} are the name of a file; give the words in it")
    sections, warnings = read_sections(lyrics)
    if not any(section.lines for section in sections):
        raise DataError("the lyrics hold no words")
    slots = lay_out(sections, max_syllable_rate(tempo) * 60 / tempo)
    beats = duration_s * tempo / 60
    least = sum(slot.lengths[0] for slot in slots)
    lengths = (
        fill_beats(slots, math.floor(beats))
        if least <= beats
        else [s.lengths[0] * beats / least for s in slots]
    )
    parts, beat_position = [], 0.0
    for slot, length in zip(slots, lengths, strict=True):
        start, beat_position = beat_position, beat_position + length
        begin_s, end_s = (min(duration_s, beat * 60 / tempo) for beat in (start, beat_position))
        words, count = slot.words, syllables(slot.words.text)
        parts.append(SongPart(slot.kind, slot.section, words.text, words.number, count, begin_s, end_s))
    parts[-1] = replace(parts[-1], end_s=duration_s)
    warnings += warn_too_dense(parts, max_syllable_rate(tempo))
    if least > beats:
        warnings.append(
            f"too many words: they need {least * 60 / tempo:.0f} s at {tempo:g} beats a minute; "
            "make the song longer, the tempo faster or the lyrics shorter"
        )
    pause_s = sum(part.end_s - part.start_s for part in parts if part.kind != "line")
    if pause_s > 0.6 * duration_s:
        warnings.append(f"{pause_s:.0f} of {duration_s:.0f} s are instrumental: a long song for so few words")
    return LyricsPlan(tuple(parts), tempo, duration_s, tuple(warnings))


def max_syllable_rate(tempo: float) -> float:
    """Syllables a second in the densest lines of a plan."""
    return min(MAX_SYLLABLE_RATE, MAX_DENSITY * tempo / 60)


def warn_too_dense(parts: Sequence[SongPart], rate: float) -> list[str]:
    """A warning for each line with more than `rate` syllables a second."""
    warnings = []
    for part in parts:
        length = part.end_s - part.start_s
        if part.kind == "line" and part.syllables > rate * length + 1e-6:
            warnings.append(
                f"line {part.number}: {part.syllables} syllables in {length:.2f} s, "
                f"at least {part.syllables / rate:.2f} s are needed"
            )
    return warnings


def fill_beats(slots: Sequence[Slot], beats: int) -> list[int]:
    """Whole beats for every slot, at one level between least, usual and largest; the rest goes to the pauses."""
    sizes = [sum(slot.lengths[k] for slot in slots) for k in range(3)]
    lower = 0 if beats < sizes[1] else 1
    share = min(1.0, (beats - sizes[lower]) / (sizes[lower + 1] - sizes[lower]))
    lengths = [
        s.lengths[lower] + math.floor(share * (s.lengths[lower + 1] - s.lengths[lower]) + 1e-9) for s in slots
    ]
    pauses = [i for i, slot in enumerate(slots) if slot.kind != "line"]
    extra, remainder = divmod(beats - sum(lengths), len(pauses))
    for i in pauses:
        lengths[i] += extra
    lengths[-1] += remainder
    return lengths


def lay_out(sections: Sequence[LyricsSection], max_density: float) -> list[Slot]:
    """Slots of a song: intro, lines with breaks between sections, outro; at most `max_density` syllables in a beat.

    A section without lines is an instrumental part, and the intro or outro where it is first or last.
    """
    slots: list[Slot] = []
    for section in sections:
        if not slots:
            slots.append(_pause("intro", "" if section.lines else section.name))
            if not section.lines:
                continue
        if not section.lines:
            slots.append(_pause("instrumental", section.name))
        elif slots[-1].kind == "line":
            slots.append(_pause("break", ""))
        slots += [_line(section.name, words, max_density) for words in section.lines]
    if slots[-1].kind == "line":
        slots.append(_pause("outro", ""))
    else:
        slots[-1] = _pause("outro", slots[-1].section)
    return slots


def _pause(kind: SongPartKind, name: str) -> Slot:
    return Slot(kind, name, LyricsLine("", 0), INSTRUMENTAL[kind])


def _line(name: str, words: LyricsLine, max_density: float) -> Slot:
    count = syllables(words.text)
    least = max(1, math.ceil(count / max_density))
    usual = max(least, 2 * math.ceil(count / (2 * USUAL_DENSITY)))  # half bars
    return Slot("line", name, words, (least, usual, math.ceil(MAX_STRETCH * usual)))


def to_lrc(song: LyricsPlan) -> str:
    """A plan as LRC, with times cut to hundredths of a second, and length, tempo and sections as tags."""
    rows = [f"[length:{_clock(song.duration_s)}]", f"[tempo:{song.tempo:g}]"]
    for i, part in enumerate(song.parts):
        if i == 0 or part.kind != "line" or song.parts[i - 1].kind != "line":
            name = part.section or (part.kind if part.kind != "line" else "")
            rows += ["", f"[section:{name}]"] if name else [""]
        if part.kind == "line":
            rows.append(f"[{_clock(part.start_s)}]{part.words}")
    return "\n".join(rows) + "\n"


def _clock(seconds: float) -> str:
    hundredths = math.floor(seconds * 100 + 1e-6)
    minutes, remainder = divmod(hundredths, 6000)
    return f"{minutes:02d}:{remainder // 100:02d}.{remainder % 100:02d}"
