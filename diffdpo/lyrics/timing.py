"""Times for lyrics that have none: sections, syllables and a tempo become an LRC that a person can edit.

Everything is counted in whole beats. Every line and every instrumental part has a least, a usual and a largest
length; the plan lies between them at the one level at which it fills the song.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from diffdpo.errors import DataError
from diffdpo.lyrics.phonemes import spell_out

PartKind = Literal["intro", "line", "break", "instrumental", "outro"]
DENSEST, USUAL = 2.5, 1.0
"""Syllables in a beat: of the fastest lines that are planned, and where there is room."""
FASTEST = 8.0
"""Syllables a second, at any tempo; faster lines lose words."""
STRETCH = 1.5
"""How much more than usual a line may take. In longer ones a model tends to repeat words."""
INSTRUMENTAL: dict[PartKind, tuple[int, int, int]] = {
    "intro": (4, 16, 32),
    "break": (4, 8, 16),
    "instrumental": (4, 16, 32),
    "outro": (4, 16, 32),
}
"""Least, usual and largest number of beats."""
HEADER = re.compile(r"\s*\[([^\]:]+)(?::[^\]]*)?\]\s*:?\s*")
HAS_TIME = re.compile(r"\s*\[\d+:\d")
ABOUT = re.compile(r"\s*\[(?:ar|al|ti|au|lr|by|re|ve|tool|length|tempo|section|#):.*\]\s*", re.IGNORECASE)
"""An LRC's title, author and the like: nothing to sing."""
SUNG_SECTIONS = ("verse", "chorus", "hook", "bridge", "prechorus", "postchorus", "refrain", "rap")
PAUSES = ("inst", "instrumental", "interlude", "break", "solo", "intro", "outro")


@dataclass(frozen=True)
class Part:
    """A sung line or an instrumental stretch. Parts follow each other without gaps."""

    kind: PartKind
    section: str
    """As in the lyrics' tag; empty where there was none."""
    words: str
    number: int
    """Of the line in the lyrics; 0 for a pause."""
    syllables: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Plan:
    """A song from its first second to its last."""

    parts: tuple[Part, ...]
    tempo: float
    duration_s: float
    warnings: tuple[str, ...]

    @property
    def lines(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.kind == "line")


class Words(NamedTuple):
    """A line of the lyrics and its place in the file."""

    text: str
    number: int


class Section(NamedTuple):
    """A stanza with its tag; one without lines is instrumental."""

    name: str
    lines: list[Words]


class Slot(NamedTuple):
    """A part whose length is open: least, usual and largest, in beats."""

    kind: PartKind
    section: str
    words: Words
    lengths: tuple[int, int, int]


def plan(lyrics: str, duration_s: float, *, tempo: float = 100.0) -> Plan:
    """Lyrics, with or without [verse] and [chorus] tags, timed to fill a song of `tempo` beats a minute.

    A line is never shorter than its syllables at the `fastest` rate, sections are separated by a break of a bar at
    least, and every line begins on a beat. Lyrics too dense for that are squeezed into the duration with a
    warning for each line. DataError: no words, or lyrics that have times.
    """
    if not (math.isfinite(duration_s) and duration_s > 0 and math.isfinite(tempo) and tempo > 0):
        raise DataError(f"duration and tempo must be positive, got {duration_s} s and {tempo} beats a minute")
    sections, warnings = read_sections(lyrics)
    if not any(section.lines for section in sections):
        raise DataError("the lyrics hold no words")
    slots = lay_out(sections, fastest(tempo) * 60 / tempo)
    beats = duration_s * tempo / 60
    least = sum(slot.lengths[0] for slot in slots)
    lengths = (
        fill(slots, math.floor(beats)) if least <= beats else [s.lengths[0] * beats / least for s in slots]
    )
    parts, at = [], 0.0
    for slot, length in zip(slots, lengths, strict=True):
        start, at = at, at + length
        begin_s, end_s = (min(duration_s, beat * 60 / tempo) for beat in (start, at))
        words, count = slot.words, syllables(slot.words.text)
        parts.append(Part(slot.kind, slot.section, words.text, words.number, count, begin_s, end_s))
    parts[-1] = replace(parts[-1], end_s=duration_s)
    warnings += too_dense(parts, fastest(tempo))
    if least > beats:
        warnings.append(
            f"too many words: they need {least * 60 / tempo:.0f} s at {tempo:g} beats a minute; "
            "make the song longer, the tempo faster or the lyrics shorter"
        )
    quiet = sum(part.end_s - part.start_s for part in parts if part.kind != "line")
    if quiet > 0.6 * duration_s:
        warnings.append(f"{quiet:.0f} of {duration_s:.0f} s are instrumental: a long song for so few words")
    return Plan(tuple(parts), tempo, duration_s, tuple(warnings))


def fastest(tempo: float) -> float:
    """Syllables a second in the densest lines that are planned."""
    return min(FASTEST, DENSEST * tempo / 60)


def too_dense(parts: Sequence[Part], rate: float) -> list[str]:
    """A warning for each line with more than `rate` syllables a second."""
    found = []
    for part in parts:
        length = part.end_s - part.start_s
        if part.kind == "line" and part.syllables > rate * length + 1e-6:
            found.append(
                f"line {part.number}: {part.syllables} syllables in {length:.2f} s, "
                f"at least {part.syllables / rate:.2f} s are needed"
            )
    return found


def fill(slots: Sequence[Slot], beats: int) -> list[int]:
    """Whole beats for every slot: all at one level between least, usual and largest, the rest to the quiet ones."""
    sizes = [sum(slot.lengths[k] for slot in slots) for k in range(3)]
    lower = 0 if beats < sizes[1] else 1
    share = min(1.0, (beats - sizes[lower]) / (sizes[lower + 1] - sizes[lower]))
    lengths = [
        s.lengths[lower] + math.floor(share * (s.lengths[lower + 1] - s.lengths[lower]) + 1e-9) for s in slots
    ]
    quiet = [i for i, slot in enumerate(slots) if slot.kind != "line"]
    each, rest = divmod(beats - sum(lengths), len(quiet))
    for i in quiet:
        lengths[i] += each
    lengths[-1] += rest
    return lengths


def lay_out(sections: Sequence[Section], densest: float) -> list[Slot]:
    """Intro, lines with breaks between sections, outro; at most `densest` syllables in a beat.

    A tag without lines is a pause of its own, and the intro or outro where it stands first or last.
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
        slots += [_line(section.name, words, densest) for words in section.lines]
    if slots[-1].kind == "line":
        slots.append(_pause("outro", ""))
    else:
        slots[-1] = _pause("outro", slots[-1].section)
    return slots


def _pause(kind: PartKind, name: str) -> Slot:
    return Slot(kind, name, Words("", 0), INSTRUMENTAL[kind])


def _line(name: str, words: Words, densest: float) -> Slot:
    count = syllables(words.text)
    least = max(1, math.ceil(count / densest))
    usual = max(least, 2 * math.ceil(count / (2 * USUAL)))  # half bars
    return Slot("line", name, words, (least, usual, math.ceil(STRETCH * usual)))


def read_sections(lyrics: str) -> tuple[list[Section], list[str]]:
    """Sections by tag or by empty line, and warnings for what is not understood."""
    sections: list[Section] = []
    warnings = []
    apart = True
    for number, raw in enumerate(lyrics.lstrip("\ufeff").splitlines(), start=1):
        if HAS_TIME.match(raw):
            raise DataError(f"line {number}: has a time; `lyrics plan` is for lyrics without, this is an LRC")
        if ABOUT.fullmatch(raw):
            continue
        if header := HEADER.fullmatch(raw):
            name = header[1].strip().lower()
            if re.sub(r"[^a-z]", "", name) not in SUNG_SECTIONS + PAUSES:
                warnings.append(f"line {number}: [{header[1]}] is no tag we know; it begins a section")
            sections.append(Section(name, []))
            apart = False
        elif not raw.strip():
            apart = apart or bool(sections and sections[-1].lines)
        elif not syllables(raw):
            warnings.append(f"line {number}: nothing to sing: {raw.strip()!r}")
        else:
            if apart:
                sections.append(Section(sections[-1].name if sections else "", []))
            sections[-1].lines.append(Words(raw.strip(), number))
            apart = False
    return sections, warnings


def to_lrc(song: Plan) -> str:
    """The lines of a plan as LRC, cut to hundredths of a second. Length, tempo and sections are LRC tags."""
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
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


SILENT = (
    r"'(s|d|t|m|ll|re|ve)$",
    r"(?<=[^aeiouytd])ed$|(?<=th)es$|(?<=[^aeiouyscxzghl])es$|(?<=[aeiouy]l)es$",
    r"(?<=[^aeiouyl])e$|(?<=[aeiouy]l)e$",
    r"(?<=[aeiouy][^aeiouy])e(?=(ly|thing|one|where|times?|ful|less|ness|ment)s?$)",
)
"""Ends and seams of English words that are written with a vowel and sung without."""
APART = (
    r"(?<![tscgxn])(?<!ll)i[oau](?!ge)|eo$|(?<![qg])ua|[aeouy]ing|iet|[^t]ienc|crea|ao|oem|[dr]ea$|thm$|sm$"
)
"""Vowels side by side that are two syllables, and syllables without a written vowel."""


def syllables(text: str) -> int:
    """How many syllables a line is sung on: vowel groups of Latin words, one for each Chinese or similar sign.

    A rule of thumb for English that needs no dictionary and is the same on every machine.
    """
    marked = unicodedata.normalize("NFD", spell_out(text).replace("\u2019", "'").lower())
    plain = re.sub(r"([a-z])[\u0300-\u036f]+", lambda match: match[1].upper(), marked)
    signs = sum(unicodedata.category(char) == "Lo" for char in text)
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", plain)
    return signs + sum(_of_word(word) for word in words if unicodedata.category(word[0]) != "Lo")


def _of_word(word: str) -> int:
    """Of a word in small letters; capitals had an accent, so they sound, and on their own."""
    extra = len(re.findall(APART, word)) + bool(re.search(r"[ds]n't$", word))
    for silent in SILENT:
        word = re.sub(silent, "", word)
    return max(1, len(re.findall(r"[aeiouy]+|[AEIOUY]", word)) + extra)
