# ruff: noqa: RUF001 - phonemes are the letters they look like
"""Chinese lyrics to phonemes: pinyin, tone sandhi, and IPA with an arrow for the tone.

Words come from jieba and readings from pypinyin, in place of the published lexicon and its model for characters of
several readings; sandhi and the IPA inventory are the published ones. All three packages are optional.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from diffdpo.errors import UserError

ARROWS = ("", "→", "↑", "↓↑", "↓", "")
"""The arrow of each tone, 1 to 4, and none for the neutral tone 5."""
INITIALS = {
    "": "", "b": "p⁼", "p": "pʰ", "m": "m", "f": "f", "d": "t⁼", "t": "tʰ", "n": "n", "l": "l", "g": "k⁼",
    "k": "kʰ", "h": "x", "j": "tʃ⁼", "q": "tʃʰ", "x": "ʃ", "zh": "ts`⁼", "ch": "ts`ʰ", "sh": "s`", "r": "ɹ`",
    "z": "ts⁼", "c": "tsʰ", "s": "s",
}  # fmt: skip
FINALS = {
    "a": "a", "o": "o", "e": "ə", "ê": "ɛ", "ai": "aɪ", "ei": "eɪ", "ao": "ɑʊ", "ou": "oʊ", "an": "an",
    "en": "ən", "ang": "ɑŋ", "eng": "əŋ", "ong": "ʊŋ", "er": "əɹ", "i": "i", "ia": "ia", "ie": "iɛ",
    "iao": "iɑʊ", "iou": "ioʊ", "ian": "jɛn", "in": "in", "iang": "iɑŋ", "ing": "iŋ", "iong": "jʊŋ", "u": "u",
    "ua": "ua", "uo": "uo", "uai": "uaɪ", "uei": "ueɪ", "uan": "uan", "uen": "uən", "uang": "uɑŋ",
    "ueng": "ʊŋ", "v": "ɥ", "ve": "ɥɛ", "van": "ɥæn", "vn": "ɥn",
}  # fmt: skip
SYLLABLES = {"m": "mu", "n": "en", "ng": "en", "hm": "hen", "hng": "heng"}
"""Hummed syllables, and the syllables of the inventory that replace them."""
SYLLABIC_INITIALS = ("zh", "ch", "sh", "r", "z", "c", "s")
"""Initials after which i is no vowel: initial and tone are the syllable."""
KEEPS_ER = {"女儿", "老儿", "男儿", "少儿", "小儿"}
"""Words in which 儿 is a full syllable with its tone."""
DIGITS = "零一二三四五六七八九"


def mandarin(text: str) -> list[str]:
    """The phonemes of a Chinese run. ASCII punctuation stays; other characters are left out."""
    jieba, lazy_pinyin, style, number_words = _packages()
    with suppress(ValueError):  # a number that means nothing, such as 1.2.3
        text = number_words(text.strip(), "an2cn")
    text = re.sub(r"\d", lambda digit: DIGITS[int(digit[0])], text)
    text = re.sub(r"[^\u4e00-\u9fff,.?!;:'…]", "", text)
    phones: list[str] = []
    for word in join_words(jieba.lcut(text)):
        if not _is_word(word):
            phones += word
            continue
        readings = lazy_pinyin([word], style=style.TONE3, neutral_tone_with_five=True)
        if len(readings) == len(word) and all(syllable[-1] in "12345" for syllable in readings):
            tones = sandhi(word, [int(syllable[-1]) for syllable in readings])
            readings = [syllable[:-1] + str(tone) for syllable, tone in zip(readings, tones, strict=True)]
        for syllable in readings:
            phones += ipa(syllable) if syllable[-1] in "12345" else [syllable]
    return phones


@cache
def _packages() -> tuple[Any, Any, Any, Any]:
    try:
        import jieba
        from cn2an import transform
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise UserError(
            f"Chinese lyrics need pypinyin, jieba and cn2an ({error.name} is missing): "
            "pip install pypinyin jieba cn2an"
        ) from None
    jieba.setLogLevel("ERROR")
    return jieba, lazy_pinyin, Style, transform


def ipa(syllable: str) -> list[str]:
    """One or two phonemes of a syllable of pinyin with the number of its tone, such as hao3."""
    from pypinyin.contrib.tone_convert import to_finals, to_initials

    name, tone = syllable[:-1], int(syllable[-1])
    arrow = ARROWS[tone]
    if name in ("yo", "yai"):  # the only finals that begin with a vowel of their own
        return ["i", FINALS[name[1:]] + arrow]
    name = SYLLABLES.get(name, name)
    initial, final = to_initials(name), to_finals(name, v_to_u=False)
    if final not in FINALS:
        return [syllable]
    if final == "i" and initial in SYLLABIC_INITIALS:  # the published front end loses it in the neutral tone
        return [INITIALS[initial] + (f"ɹ{arrow}" if arrow else "")]
    if final == "o" and initial in ("b", "p", "m", "f"):
        return [f"{INITIALS[initial]}wo{arrow}"]
    return ([INITIALS[initial]] if initial else []) + [FINALS[final] + arrow]


def join_words(words: Sequence[str]) -> list[str]:
    """Words as units of sandhi: 一 and 不 join the next word, 儿 the word before, and 看 一 看 is one word."""
    compounds: list[str] = []
    for word in words:
        if compounds[-1:] == ["一"] and compounds[-2:-1] == [word]:
            compounds[-2:] = [f"{word}一{word}"]
        elif compounds[-1:] == ["一"] and _is_word(word):
            compounds[-1] += word
        else:
            compounds.append(word)
    words, compounds = compounds, []
    for word in words:
        previous = compounds[-1] if compounds else ""
        if (previous == "不" and _is_word(word)) or (word == "儿" and _is_word(previous)):
            compounds[-1] += word
        else:
            compounds.append(word)
    return compounds


def _is_word(word: str) -> bool:
    return "\u4e00" <= word[:1] <= "\u9fff"


def sandhi(word: str, tones: Sequence[int]) -> list[int]:
    """The tones of a word after tone sandhi."""
    sung_tones = list(tones)
    if sung_tones == [3, 3]:
        sung_tones[0] = 2
    if len(word) == 3 and word[1] == "不":
        sung_tones[1] = 5
    elif word != "不字" and set(word) != {"不"}:
        for i, next_tone in enumerate(sung_tones[1:]):
            if word[i] == "不" and next_tone == 4:
                sung_tones[i] = 2
    sung_tones = _sandhi_of_yi(word, sung_tones)
    if len(word) > 1 and word.endswith("儿") and word not in KEEPS_ER:
        sung_tones[-1] = 5
    return sung_tones


def _sandhi_of_yi(word: str, tones: Sequence[int]) -> list[int]:
    """The tones of a word after the sandhi of 一: level in numbers and ordinals, neutral between equal characters,
    rising before a falling tone, else falling."""
    sung_tones = list(tones)
    is_number = any(char.isnumeric() and char != "一" for char in word)
    for i, char in enumerate(word):
        if char != "一":
            continue
        next_tone = sung_tones[i + 1] if i + 1 < len(word) else None
        if is_number:
            unit = i == 0 and word[1] not in DIGITS + "十"
            sung_tones[i] = (2 if next_tone in (4, 5) else 4) if unit else 1
        elif len(word) == 3 and i == 1 and word[0] == word[2]:
            sung_tones[i] = 5
        elif (i == 1 and word.startswith("第")) or (i == 0 and word[:2] in ("一月", "一日", "一号")):
            sung_tones[i] = 1
        elif next_tone is not None:
            sung_tones[i] = 2 if next_tone == 4 else 4
    return sung_tones
