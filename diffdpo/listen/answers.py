"""Answers of listeners, as they come from a browser: checked field by field, nothing else is stored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffdpo.data.votes import ANSWERS, MAX_STRENGTH
from diffdpo.errors import ensure
from diffdpo.listen.study import MAX_SPANS, MAX_TEXT, Study
from diffdpo.text_files import printable

Marks = tuple[tuple[float, float], ...]
"""Bad moments, (start, stop) in seconds of an excerpt."""
LANGUAGE_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True)
class TrialAnswer:
    """What a listener answered in one trial; fields that its mode does not ask for are empty."""

    choice: str = ""
    """`a`, `b`, `tie` or `both_bad`; or `skip` or `report`, which are no votes."""
    strength: int = 0
    axes: Mapping[str, Any] = field(default_factory=dict)
    """By axis the choice, or the number of stars."""
    thumb: int = 0
    stars: int = 0
    values: tuple[float, ...] = ()
    """MUSHRA: the value of each song but the open reference, in the order of presentation."""
    spans: tuple[Marks, ...] = ()
    """Bad moments of each song, in the order of presentation."""
    comment: str = ""

    @property
    def is_vote(self) -> bool:
        """Whether it says something about the songs."""
        return self.choice not in ("skip", "report")


def parse_answer(body: Mapping[str, Any], study: Study, songs: int, seconds: float) -> TrialAnswer:
    """The answer in the JSON of a request, for a trial of some songs of this length. ValueError if it is none."""
    comment = parse_text(body.get("comment", ""), "comment")
    if body.get("skip"):
        return TrialAnswer(choice="skip", comment=comment)
    if "report" in body:
        return TrialAnswer(choice="report", comment=parse_text(body["report"], "report"))
    spans = _parse_spans(body.get("spans", []), songs, seconds) if study.trials.spans else ()
    if study.mode == "pair":
        return _parse_choice(body, study, spans, comment)
    if study.mode == "rating":
        return _parse_rating(body, study, spans, comment)
    values = body.get("values")
    ensure(
        isinstance(values, list) and len(values) == songs - 1, f"values must be a list of {songs - 1} numbers"
    )
    ensure(all(_is_number(value) and 0 <= value <= 100 for value in values or ()), "values are from 0 to 100")
    return TrialAnswer(values=tuple(float(value) for value in values or ()), spans=spans[1:], comment=comment)


def _parse_choice(
    body: Mapping[str, Any], study: Study, spans: tuple[Marks, ...], comment: str
) -> TrialAnswer:
    choice, axes = body.get("answer"), body.get("axes", {})
    ensure(choice in ANSWERS, f"answer must be one of {', '.join(ANSWERS)}")
    strength = body.get("strength", 0)
    ensure(
        isinstance(strength, int) and not isinstance(strength, bool) and 0 <= strength <= MAX_STRENGTH,
        f"strength must be a whole number from 0 to {MAX_STRENGTH}",
    )
    _check_axes(axes, study)
    ensure(all(value in ANSWERS for value in axes.values()), f"axes: one of {', '.join(ANSWERS)}")
    has_strength = study.trials.strength and choice in ("a", "b")
    return TrialAnswer(
        choice=str(choice),
        strength=int(strength) if has_strength else 0,
        axes=dict(axes),
        spans=spans,
        comment=comment,
    )


def _parse_rating(
    body: Mapping[str, Any], study: Study, spans: tuple[Marks, ...], comment: str
) -> TrialAnswer:
    thumb, stars, axes = body.get("thumb", 0), body.get("stars", 0), body.get("axes", {})
    ensure(thumb in (-1, 0, 1) and not isinstance(thumb, bool), "thumb must be -1 or 1")
    ensure(_is_star(stars) or stars == 0, "stars must be from 1 to 5")
    ensure(bool(thumb or stars), "a rating needs a thumb or stars")
    _check_axes(axes, study)
    ensure(all(map(_is_star, axes.values())), "axes: from 1 to 5 stars")
    return TrialAnswer(thumb=int(thumb), stars=int(stars), axes=dict(axes), spans=spans, comment=comment)


def _check_axes(axes: Any, study: Study) -> None:
    ensure(
        isinstance(axes, dict) and set(axes) <= set(study.trials.axes),
        f"axes must be among {', '.join(study.trials.axes) or 'none'}",
    )


def _is_star(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 5


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parse_spans(value: Any, songs: int, seconds: float) -> tuple[Marks, ...]:
    if value in (None, []):
        return ((),) * songs
    ensure(
        isinstance(value, list) and len(value) == songs and all(isinstance(marks, list) for marks in value),
        f"spans must be {songs} lists, one for each song",
    )
    return tuple(_parse_marks(marks, seconds) for marks in value)


def _parse_marks(marks: Sequence[Any], seconds: float) -> Marks:
    ensure(len(marks) <= MAX_SPANS, f"spans: at most {MAX_SPANS} in a song")
    rows = []
    for mark in marks:
        is_pair = isinstance(mark, list) and len(mark) == 2 and all(map(_is_number, mark))
        ensure(
            is_pair and 0 <= mark[0] < mark[1] <= seconds + 0.05,
            f"spans: [start, stop] with 0 <= start < stop <= {seconds:g}",
        )
        rows.append((float(mark[0]), float(min(mark[1], seconds))))
    return tuple(row for row in rows if row[0] < row[1])


def parse_text(value: Any, name: str, length: int = MAX_TEXT) -> str:
    """A text that a listener wrote. ValueError for anything else, or more than fits."""
    ensure(isinstance(value, str), f"{name} must be text")
    ensure(len(value) <= length, f"{name}: at most {length} characters")
    return printable(value).replace("\0", "").strip()


BACKGROUNDS = ("none", "listener", "amateur", "trained", "professional")
"""What listeners can say about their experience with music."""


def parse_background(body: Mapping[str, Any]) -> dict[str, str]:
    """What a listener says about themselves; everything may be left out. ValueError for anything else."""
    rows = {}
    if body.get("language"):
        rows["language"] = parse_text(body["language"], "language", LANGUAGE_CHARACTERS)
    if body.get("background"):
        ensure(body["background"] in BACKGROUNDS, f"background must be one of {', '.join(BACKGROUNDS)}")
        rows["background"] = str(body["background"])
    return {name: text for name, text in rows.items() if text}
