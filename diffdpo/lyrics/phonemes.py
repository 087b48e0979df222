# ruff: noqa: RUF001 - phonemes are the letters they look like
"""A line of lyrics to the phonemes DiffRhythm was trained on: English through espeak-ng, Chinese through pinyin.

The published front end is followed where it decides what the network hears: how a line falls into languages,
what is spelled out, which phonemes are merged, where a word boundary `_` stands. espeak-ng (in espeakng-loader)
and phonemizer are under GPL-3: an optional extra, imported when the first English line is read.
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
"""All but the dashes as published; there a dash vanishes and glues the words around it together."""


def is_chinese(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fa5"


def is_english(char: str) -> bool:
    return char.isascii() and char.isalpha()


def foreign(text: str) -> str:
    """The letters of other scripts than Latin and Chinese, each once: nothing here can read them."""
    return "".join(sorted({c for c in text if c.isalpha() and not _readable(c)}))


def _readable(char: str) -> bool:
    return unicodedata.name(char, "").startswith(("LATIN", "CJK UNIFIED"))


def mostly(text: str) -> Language:
    """The language of most of a text, to read bare digits in: a Chinese character counts as much as a word."""
    return "zh" if sum(map(is_chinese, text)) > len(re.findall(r"[A-Za-z]+", text)) else "en"


def runs(text: str, default: Language = "en") -> list[tuple[Language, str]]:
    """Stretches of one language. What is neither joins the stretch before it, at the start the one behind it.

    Letters of other scripts are left out. A line of digits is read in the default language; without even
    those there is nothing to read.
    """
    found: list[tuple[Language, str]] = []
    pending = ""
    for char in text:
        language: Language | None = "zh" if is_chinese(char) else "en" if is_english(char) else None
        if char.isalpha() and not _readable(char):
            continue
        if found and language in (None, found[-1][0]):
            found[-1] = (found[-1][0], found[-1][1] + char)
        elif language is None:
            pending += char
        else:
            found.append((language, pending + char))
            pending = ""
    if not found and any(char.isalnum() for char in pending):
        return [(default, pending)]
    return found


def phonemes(text: str, default: Language = "en") -> list[str]:
    """One line: phonemes, `_` between English words, and marks. The boundary behind an English end is left out."""
    spoken: list[str] = []
    language: Language = default
    for language, run in runs(text, default):
        spoken += english(run) if language == "en" else mandarin(plain(run))
    return spoken[:-1] if language == "en" and spoken[-1:] == [BOUNDARY] else spoken


def plain(text: str) -> str:
    """Punctuation of all kinds as MARKS."""
    for mark, replacement in PUNCTUATION.items():
        text = text.replace(mark, replacement)
    return text


MERGES = (
    (("t", "ɹ"), "tɹ"), (("d", "ɹ"), "dɹ"), (("t", "s"), "ts"), (("d", "z"), "dz"), (("ɪ", "ɹ"), "ɪɹ"),
    (("ɐ",), "ɚ"), (("ᵻ",), "ɪ"), (("əl",), "l"), (("x",), "k"), (("ɬ",), "l"), (("ʔ",), "t"), (("n̩",), "n"),
    (("oː", "ɹ"), "oːɹ"),
)  # fmt: skip
"""What espeak says, and what the vocabulary calls it; applied in this order."""
BEFORE_BOUNDARY = frozenset("p⁼ʰmftnlkxʃs`ɹaoəɛɪeɑʊŋiuɥwæjː")
"""A run that ends in one of these characters is followed by a boundary. Published, without a pattern to see."""


def english(text: str) -> list[str]:
    """The phonemes of an English run as published, with the boundary behind it."""
    text = re.sub(rf"[^\w\s_{MARKS}]", "", plain(spell_out(text).strip()))
    text = re.sub(rf"\s*([{MARKS}])\s*", r"\1", text)
    text = re.sub(r"\s+", " ", text)
    if not re.search(r"\w", text):
        return [char for char in text if char in MARKS]
    phonemize, separator = _espeak()
    (said,) = phonemize([text], separator=separator, strip=True, njobs=1) or [""]
    said = re.sub(rf"([{MARKS}])", r"|\1|", said).rstrip("|")
    phones = [phone for phone in said.split("|") if phone]
    if phones and phones[-1][-1] in BEFORE_BOUNDARY:
        phones.append(BOUNDARY)
    for pattern, merged in MERGES:
        phones = _replace(phones, pattern, merged)
    return phones


def _replace(phones: list[str], pattern: tuple[str, ...], merged: str) -> list[str]:
    result: list[str] = []
    at = 0
    while at < len(phones):
        hit = tuple(phones[at : at + len(pattern)]) == pattern
        result.append(merged if hit else phones[at])
        at += len(pattern) if hit else 1
    return result


@cache
def _espeak() -> tuple[Callable[..., list[str]], Any]:
    """phonemizer on the espeak-ng that espeakng-loader brings along, whatever the system has."""
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


SHORT = {
    "mrs": "misess", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior",
    "maj": "major", "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant",
    "hon": "honorable", "sgt": "sergeant", "capt": "captain", "esq": "esquire", "ltd": "limited",
    "col": "colonel", "ft": "fort", "etc": "et cetera", "btw": "by the way",
}  # fmt: skip
"""Abbreviations that are spelled out."""
ONES = (
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
    short = re.compile(rf"\b({'|'.join(SHORT)})\b", re.IGNORECASE)
    text = short.sub(lambda match: SHORT[match[0].lower()], text)
    for pattern, spelled in NUMBERS:
        text = re.sub(pattern, spelled, text)
    return text


def cardinal(number: int, joint: str = " ") -> str:
    """A number in words; `joint` stands behind the hundreds and before a rest below one hundred."""
    if number >= 1000 ** len(SCALES):
        return " ".join(ONES[int(digit)] for digit in str(number))
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{ONES[hundreds]} hundred" + (joint + cardinal(rest) if rest else "")
    scale = (len(str(number)) - 1) // 3
    high, rest = divmod(number, 1000**scale)
    comma = joint if rest < 100 else ", "
    return cardinal(high, joint) + SCALES[scale] + (comma + cardinal(rest, joint) if rest else "")


def ordinal(number: int) -> str:
    """Third, twenty-first, one hundred and twelfth."""
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
    said = [f"{amount} {unit}{'' if amount == 1 else 's'}" for amount, unit in amounts if amount]
    return f" {', '.join(said) or 'zero dollars'} "


def _fraction(match: re.Match[str]) -> str:
    above, below = int(match[1]), int(match[2])
    count = cardinal(above, " and ")
    if below in (2, 4):
        one, many = {2: ("half", "halves"), 4: ("quarter", "quarters")}[below]
        return f" {count} {one if above == 1 else many} "
    return f" {count} {ordinal(below)} "


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
"""What is spelled out, in this order."""
