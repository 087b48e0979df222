"""Sliders as people write them: a file with a contrast of prompts a line, and the prompts that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from diffdpo.errors import ConfigError, DataError
from diffdpo.registry import closest
from diffdpo.text_files import check_text, read_jsonl
from diffdpo.types import Prompt

NEUTRAL = "{neutral}"
"""What stands in `plus` and `minus` for the text of the neutral prompt."""


@dataclass(frozen=True, kw_only=True)
class SliderContrast:
    """One line: what more and less of a concept are called, and for which prompts.

    A slider is all lines of its name: its adapter learns the mean of their contrasts.
    """

    name: str
    plus: str
    """A prompt with more of the concept; `{neutral}` in it is the text of the neutral prompt."""
    minus: str
    """A prompt with less of it."""
    neutral: tuple[str, ...] = ()
    """The prompts that the adapter is asked for in training; () for those of the songs that are given."""
    preserve: tuple[str, ...] = ()
    """Attributes that the slider is to leave alone: each is added to all three prompts in turn."""

    def neutral_texts(self) -> list[str]:
        """The neutral prompts, as they are and with each attribute."""
        return [_join(text, attribute) for text in self.neutral for attribute in ("", *self.preserve)]

    def pairs_for(self, text: str) -> list[tuple[str, str]]:
        """The prompts with more and with less of the concept that a neutral prompt is set between.

        Empty for a prompt that the contrast is not about.
        """
        pairs = []
        for neutral in self.neutral or (text,):
            for attribute in ("", *self.preserve) if self.neutral else ("",):
                if _join(neutral, attribute) == text:
                    pairs.append(
                        (self._fill(self.plus, text, attribute), self._fill(self.minus, text, attribute))
                    )
        return pairs

    @staticmethod
    def _fill(template: str, text: str, attribute: str) -> str:
        return template.replace(NEUTRAL, text) if NEUTRAL in template else _join(template, attribute)


def _join(text: str, attribute: str) -> str:
    """A text with an attribute behind it."""
    return ", ".join(part for part in (text, attribute) if part)


def read_sliders(path: Path) -> list[SliderContrast]:
    """The contrasts of a file. DataError names the line of an unknown key or a wrong value."""
    contrasts = [_contrast(row, f"{path}:{number}") for number, row in read_jsonl(path)]
    if not contrasts:
        raise DataError(f"{path}: holds no sliders")
    return contrasts


def slider_names(path: Path) -> list[str]:
    """The names of the sliders of a file, in its order."""
    return list(dict.fromkeys(contrast.name for contrast in read_sliders(path)))


def select_slider(path: Path, name: str) -> list[SliderContrast]:
    """The contrasts of one slider of a file; `name` may be empty where there is only one. ConfigError otherwise."""
    contrasts = read_sliders(path)
    names = list(dict.fromkeys(contrast.name for contrast in contrasts))
    if not name and len(names) > 1:
        raise ConfigError(
            f"{path}: holds the sliders {', '.join(names)}, and an adapter is one of them; set data.slider=NAME, "
            "or train all with `diffdpo sliders`"
        )
    if name and name not in names:
        raise ConfigError(
            f"data.slider: {path} holds no slider {name!r}.{closest(name, names)} Known: {', '.join(names)}."
        )
    return [contrast for contrast in contrasts if contrast.name == (name or names[0])]


def neutral_prompts(contrasts: Sequence[SliderContrast], duration_s: float) -> list[Prompt]:
    """The neutral prompts of sliders, each text once. ConfigError where a contrast names none."""
    texts: dict[str, None] = {}
    for contrast in contrasts:
        if not contrast.neutral:
            raise ConfigError(
                f"slider {contrast.name!r}: names no neutral prompts; add them, or set data.samples to songs of "
                "the network, whose prompts they are then"
            )
        texts |= dict.fromkeys(contrast.neutral_texts())
    return [
        Prompt(id=f"neutral-{number:03d}", text=text, lyrics=None, duration_s=duration_s)
        for number, text in enumerate(texts)
    ]


def contrast_prompts(prompt: Prompt, contrasts: Sequence[SliderContrast]) -> Iterator[tuple[Prompt, Prompt]]:
    """The prompts with more and with less of a slider's concept, for each contrast about a neutral prompt.

    They differ from it by their text alone.
    """
    for contrast in contrasts:
        for plus, minus in contrast.pairs_for(prompt.text or ""):
            yield replace(prompt, text=plus), replace(prompt, text=minus)


def _contrast(row: dict[str, Any], location: str) -> SliderContrast:
    known_keys = [field.name for field in fields(SliderContrast)]
    for key in row:
        if key not in known_keys:
            hint = f"{closest(key, known_keys)} Known: {', '.join(known_keys)}."
            raise DataError(f"{location}: unknown key {key!r}.{hint}")
    for key in ("name", "plus", "minus"):
        if not isinstance(row.get(key), str) or (key == "name" and not row[key].strip()):
            raise DataError(f"{location}: a slider needs {key}, a text")
        check_text(row[key], key, location)
    if row["plus"] == row["minus"]:
        raise DataError(f"{location}: plus and minus are the same prompt, so there is nothing to learn")
    lists = {key: _texts(row, key, location) for key in ("neutral", "preserve")}
    if lists["preserve"] and not lists["neutral"]:
        raise DataError(f"{location}: preserve adds attributes to neutral prompts; name neutral prompts too")
    return SliderContrast(name=row["name"], plus=row["plus"], minus=row["minus"], **lists)


def _texts(row: dict[str, Any], key: str, location: str) -> tuple[str, ...]:
    """One text or several."""
    value = row.get(key)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{location}: {key} must be a text or a list of texts, got {value!r}")
    for text in texts:
        check_text(text, key, location)
    return tuple(dict.fromkeys(texts))
