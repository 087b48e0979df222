# ruff: noqa: RUF001 - phonemes are the letters they look like
"""A line of lyrics to the phonemes DiffRhythm was trained on: English through espeak-ng, Chinese through pinyin.

The published front end is followed where it decides the network's input: the split of a line into languages,
numbers and abbreviations that are spelled out, phonemes that are merged, places of the word boundary `_`. espeak-ng
(in espeakng-loader) and phonemizer are under GPL-3: an optional extra, imported for the first English line.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from diffdpo.errors import UserError
from diffdpo.lyrics.pinyin import mandarin

Language = Literal["en", "zh"]
MARKS = ",.?!;:'…"
"""Punctuation that is a phoneme of its own."""
BOUNDARY = "_"
PUNCTUATION = {
    "，": ",", "、": ",", "。": ".", "！": "!", "？": "?", "；": ";", "：": ":", "‘": "'", "’": "'",
    "⋯": "…", "···": "…", "・・・": "…", "...": "…", "—": ",", "–": ",",
}  # fmt: skip
"""Marks and their ASCII forms, as published but for the dashes, which the published front end deletes."""


def is_chinese(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fa5"


def is_english(char: str) -> bool:
    return char.isascii() and char.isalpha()


def unreadable_letters(text: str) -> str:
    """The letters of a text in scripts other than Latin and Chinese, each once; the front end cannot read them."""
    return "".join(sorted({c for c in text if c.isalpha() and not _readable(c)}))


def _readable(char: str) -> bool:
    return unicodedata.name(char, "").startswith(("LATIN", "CJK UNIFIED"))


def main_language(text: str) -> Language:
    """The language of most of a text, in which its digits are read; a Chinese character counts like a word."""
    return "zh" if sum(map(is_chinese, text)) > len(re.findall(r"[A-Za-z]+", text)) else "en"


def language_runs(text: str, default: Language = "en") -> list[tuple[Language, str]]:
    """Runs of one language. Characters of neither language join the run before them, at the start the first run.

    Letters of other scripts are left out. A line of digits only is one run of the default language; a line without
    letters and digits has no runs.
    """
    result: list[tuple[Language, str]] = []
    prefix = ""
    for char in text:
        language: Language | None = "zh" if is_chinese(char) else "en" if is_english(char) else None
        if char.isalpha() and not _readable(char):
            continue
        if result and language in (None, result[-1][0]):
            result[-1] = (result[-1][0], result[-1][1] + char)
        elif language is None:
            prefix += char
        else:
            result.append((language, prefix + char))
            prefix = ""
    if not result and any(char.isalnum() for char in prefix):
        return [(default, prefix)]
    return result


def phonemes(text: str, default: Language = "en") -> list[str]:
    """The phonemes of a line, with marks, and `_` between English words but not at the end of the line."""
    phones: list[str] = []
    language: Language = default
    for language, run in language_runs(text, default):
        phones += english(run) if language == "en" else mandarin(normalise_punctuation(run))
    return phones[:-1] if language == "en" and phones[-1:] == [BOUNDARY] else phones


def normalise_punctuation(text: str) -> str:
    """A text with punctuation of all kinds as MARKS."""
    for mark, replacement in PUNCTUATION.items():
        text = text.replace(mark, replacement)
    return text


MERGES = (
    (("t", "ɹ"), "tɹ"), (("d", "ɹ"), "dɹ"), (("t", "s"), "ts"), (("d", "z"), "dz"), (("ɪ", "ɹ"), "ɪɹ"),
    (("ɐ",), "ɚ"), (("ᵻ",), "ɪ"), (("əl",), "l"), (("x",), "k"), (("ɬ",), "l"), (("ʔ",), "t"), (("n̩",), "n"),
    (("oː", "ɹ"), "oːɹ"),
)  # fmt: skip
"""Phonemes of espeak, and the vocabulary's phoneme for them; applied in this order."""
BEFORE_BOUNDARY = frozenset("p⁼ʰmftnlkxʃs`ɹaoəɛɪeɑʊŋiuɥwæjː")
"""A run that ends in one of these characters is followed by a boundary, as published."""


def english(text: str) -> list[str]:
    """The phonemes of an English run and the boundary behind it, as published."""
    text = re.sub(rf"[^\w\s_{MARKS}]", "", normalise_punctuation(spell_out(text).strip()))
    text = re.sub(rf"\s*([{MARKS}])\s*", r"\1", text)
    text = re.sub(r"\s+", " ", text)
    if not re.search(r"\w", text):
        return [char for char in text if char in MARKS]
    phonemize, separator = _espeak()
    (transcription,) = phonemize([text], separator=separator, strip=True, njobs=1) or [""]
    transcription = re.sub(rf"([{MARKS}])", r"|\1|", transcription).rstrip("|")
    phones = [phone for phone in transcription.split("|") if phone]
    if phones and phones[-1][-1] in BEFORE_BOUNDARY:
        phones.append(BOUNDARY)
    for pattern, replacement in MERGES:
        phones = _replace(phones, pattern, replacement)
    return phones


def _replace(phones: list[str], pattern: tuple[str, ...], replacement: str) -> list[str]:
    result: list[str] = []
    at = 0
    while at < len(phones):
        is_match = tuple(phones[at : at + len(pattern)]) == pattern
        result.append(replacement if is_match else phones[at])
        at += len(pattern) if is_match else 1
    return result


@cache
def _espeak() -> tuple[Callable[..., list[str]], Any]:
    """phonemizer on the espeak-ng of espeakng-loader, whatever the system has."""
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
        from phonemizer.separator import Separator
    except ImportError as error:
        raise UserError(
            f"English lyrics need espeak-ng ({error.name} is missing); it is under GPL-3 and optional: "
            "pip install 'phonemizer>=3.4' espeakng-loader"
        ) from None
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    backend = EspeakBackend(
        "en-us",
        punctuation_marks=MARKS,
        preserve_punctuation=True,
        with_stress=False,
        language_switch="remove-flags",
        words_mismatch="ignore",
    )
    return backend.phonemize, Separator(word=f"|{BOUNDARY}|", syllable="-", phone="|")


ABBREVIATIONS = {
    "mrs": "misess", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior",
    "maj": "major", "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant",
    "hon": "honorable", "sgt": "sergeant", "capt": "captain", "esq": "esquire", "ltd": "limited",
    "col": "colonel", "ft": "fort", "etc": "et cetera", "btw": "by the way",
}  # fmt: skip
"""Abbreviations and the words that replace them."""
SMALL_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = ("", " thousand", " million", " billion", " trillion")
ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def spell_out(text: str) -> str:
    """Abbreviations, sums of money, fractions, years and numbers in words."""
    abbreviation = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\b", re.IGNORECASE)
    text = abbreviation.sub(lambda match: ABBREVIATIONS[match[0].lower()], text)
    for pattern, replacement in NUMBERS:
        text = re.sub(pattern, replacement, text)
    return text


def cardinal(number: int, joint: str = " ") -> str:
    """A number in words, with `joint` after the hundreds and before a rest below one hundred."""
    if number >= 1000 ** len(SCALES):
        return " ".join(SMALL_NUMBERS[int(digit)] for digit in str(number))
    if number < 20:
        return SMALL_NUMBERS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return TENS[tens] + (f"-{SMALL_NUMBERS[units]}" if units else "")
    if number < 1000:
        hundreds, remainder = divmod(number, 100)
        return f"{SMALL_NUMBERS[hundreds]} hundred" + (joint + cardinal(remainder) if remainder else "")
    scale = (len(str(number)) - 1) // 3
    high, remainder = divmod(number, 1000**scale)
    comma = joint if remainder < 100 else ", "
    return cardinal(high, joint) + SCALES[scale] + (comma + cardinal(remainder, joint) if remainder else "")


def ordinal(number: int) -> str:
    """An ordinal number in words, such as third, twenty-first, one hundred and twelfth."""
    words = cardinal(number, " and ")
    head, last = re.fullmatch(r"(.*?)([a-z]+)", words).groups()  # type: ignore[union-attr]
    return head + ORDINALS.get(last, last[:-1] + "ieth" if last.endswith("y") else last + "th")


def _number(match: re.Match[str]) -> str:
    number = int(match[0])
    if not 1000 < number < 3000 or 2000 <= number < 2010:
        return f" {cardinal(number)} "
    century, year = divmod(number, 100)  # as years are said
    if year == 0:
        return f" {cardinal(century)} hundred "
    return f" {cardinal(century)} {'oh ' if year < 10 else ''}{cardinal(year)} "


def _dollars(match: re.Match[str]) -> str:
    parts = match[1].replace(",", "").split(".")
    if len(parts) > 2:
        return f" {match[1]} dollars "
    amounts = zip((int(part or 0) for part in parts), ("dollar", "cent"), strict=False)
    words = [f"{amount} {unit}{'' if amount == 1 else 's'}" for amount, unit in amounts if amount]
    return f" {', '.join(words) or 'zero dollars'} "


def _fraction(match: re.Match[str]) -> str:
    numerator, denominator = int(match[1]), int(match[2])
    count = cardinal(numerator, " and ")
    if denominator in (2, 4):
        singular, plural = {2: ("half", "halves"), 4: ("quarter", "quarters")}[denominator]
        return f" {count} {singular if numerator == 1 else plural} "
    return f" {count} {ordinal(denominator)} "


NUMBERS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"[0-9][0-9,]+[0-9]", lambda match: match[0].replace(",", "")),
    (r"£([0-9]+)", lambda match: f"{match[1]} pounds"),
    (r"\$([0-9.,]*[0-9])", _dollars),
    (r"([0-9]+)/([0-9]+)", _fraction),
    (r"[0-9]+\.[0-9]+", lambda match: match[0].replace(".", " point ")),
    (r"([0-9.,]*[0-9])%", lambda match: f"{match[1]} percent "),
    (r"([0-9]+)(?:st|nd|rd|th)", lambda match: f" {ordinal(int(match[1]))} "),
    (r"[0-9]+", _number),
)
"""Patterns of numbers and their spelling, applied in this order."""
