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
"""Of tones 1 to 4, and nothing for the neutral 5."""
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
"""Hummed ones, as others that the inventory has."""
BUZZING = ("zh", "ch", "sh", "r", "z", "c", "s")
"""Initials whose i is no vowel: one phoneme with its tone."""
KEEPS_ER = {"女儿", "老儿", "男儿", "少儿", "小儿"}
"""Words in which 儿 is a syllable of its own weight."""
DIGITS = "零一二三四五六七八九"


def mandarin(text: str) -> list[str]:
    """The phonemes of a Chinese run; its punctuation is expected as ASCII and stays, other characters are lost."""
    jieba, lazy_pinyin, style, number_words = _packages()
    with suppress(ValueError):  # a number that means nothing, such as 1.2.3
        text = number_words(text.strip(), "an2cn")
    text = re.sub(r"\d", lambda digit: DIGITS[int(digit[0])], text)
    text = re.sub(r"[^\u4e00-\u9fff,.?!;:'…]", "", text)
    spoken: list[str] = []
    for word in join_words(jieba.lcut(text)):
        if not _is_word(word):
            spoken += word
            continue
        read = lazy_pinyin([word], style=style.TONE3, neutral_tone_with_five=True)
        if len(read) == len(word) and all(syllable[-1] in "12345" for syllable in read):
            tones = sandhi(word, [int(syllable[-1]) for syllable in read])
            read = [syllable[:-1] + str(tone) for syllable, tone in zip(read, tones, strict=True)]
        for syllable in read:
            spoken += ipa(syllable) if syllable[-1] in "12345" else [syllable]
    return spoken


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
    """Pinyin with the number of its tone, such as hao3, as one or two phonemes."""
    from pypinyin.contrib.tone_convert import to_finals, to_initials

    name, tone = syllable[:-1], int(syllable[-1])
    arrow = ARROWS[tone]
    if name in ("yo", "yai"):  # the only finals that begin with a vowel of their own
        return ["i", FINALS[name[1:]] + arrow]
    name = SYLLABLES.get(name, name)
    initial, final = to_initials(name), to_finals(name, v_to_u=False)
    if final not in FINALS:
        return [syllable]
    if final == "i" and initial in BUZZING:  # the published front end loses it in the neutral tone
        return [INITIALS[initial] + (f"ɹ{arrow}" if arrow else "")]
    if final == "o" and initial in ("b", "p", "m", "f"):
        return [f"{INITIALS[initial]}wo{arrow}"]
    return ([INITIALS[initial]] if initial else []) + [FINALS[final] + arrow]


def join_words(words: Sequence[str]) -> list[str]:
    """Sandhi happens inside words: 一 and 不 join what follows, 儿 what stands before, 看 一 看 is one word."""
    joined: list[str] = []
    for word in words:
        if joined[-1:] == ["一"] and joined[-2:-1] == [word]:
            joined[-2:] = [f"{word}一{word}"]
        elif joined[-1:] == ["一"] and _is_word(word):
            joined[-1] += word
        else:
            joined.append(word)
    words, joined = joined, []
    for word in words:
        before = joined[-1] if joined else ""
        if (before == "不" and _is_word(word)) or (word == "儿" and _is_word(before)):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _is_word(word: str) -> bool:
    return "\u4e00" <= word[:1] <= "\u9fff"


def sandhi(word: str, tones: Sequence[int]) -> list[int]:
    """The tones of a word as they are spoken."""
    spoken = list(tones)
    if spoken == [3, 3]:
        spoken[0] = 2
    if len(word) == 3 and word[1] == "不":
        spoken[1] = 5
    elif word != "不字" and set(word) != {"不"}:
        for i, after in enumerate(spoken[1:]):
            if word[i] == "不" and after == 4:
                spoken[i] = 2
    spoken = _sandhi_of_one(word, spoken)
    if len(word) > 1 and word.endswith("儿") and word not in KEEPS_ER:
        spoken[-1] = 5
    return spoken


def _sandhi_of_one(word: str, tones: Sequence[int]) -> list[int]:
    """一: level when counted or ordinal, neutral between twins, rising before a falling tone, else falling."""
    spoken = list(tones)
    counted = any(char.isnumeric() and char != "一" for char in word)
    for i, char in enumerate(word):
        if char != "一":
            continue
        after = spoken[i + 1] if i + 1 < len(word) else None
        if counted:
            unit = i == 0 and word[1] not in DIGITS + "十"
            spoken[i] = (2 if after in (4, 5) else 4) if unit else 1
        elif len(word) == 3 and i == 1 and word[0] == word[2]:
            spoken[i] = 5
        elif (i == 1 and word.startswith("第")) or (i == 0 and word[:2] in ("一月", "一日", "一号")):
            spoken[i] = 1
        elif after is not None:
            spoken[i] = 2 if after == 4 else 4
    return spoken
