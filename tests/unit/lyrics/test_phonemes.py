# ruff: noqa: RUF001, SIM905
"""Grapheme to phoneme: lines measured on the original front end, closed forms, and no line that crashes."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.errors import UserError
from diffdpo.lyrics import phonemes as english_side
from diffdpo.lyrics import pinyin
from diffdpo.lyrics.phonemes import (
    cardinal,
    english,
    language_runs,
    main_language,
    ordinal,
    phonemes,
    spell_out,
    unreadable_letters,
)
from diffdpo.lyrics.pinyin import ipa, join_words, mandarin, sandhi

MEASURES = {
    "Ropes are humming low": "ɹ|oʊ|p|s|_|ɑːɹ|_|h|ʌ|m|ɪ|ŋ|_|l|oʊ|_",
    "Morning on the harbour": "m|ɔːɹ|n|ɪ|ŋ|_|ɔ|n|ð|ə|_|h|ɑːɹ|b|ɚ",
    "Don't let the evening win": "d|ɑː|n|'|t|iː|_|l|ɛ|t|_|ð|ɪ|_|iː|v|n|ɪ|ŋ|_|w|ɪ|n|_",
    "Seventeen bottles, forty-two stones": "s|ɛ|v|ə|n|t|iː|n|_|b|ɑː|ɾ|l|z|,|f|ɔːɹ|ɾ|ɪ|t|uː|_|s|t|oʊ|n|z",
    "Something about, well... something in June": (
        "s|ʌ|m|θ|ɪ|ŋ|_|ɚ|b|aʊ|t|,|w|ɛ|l|…|s|ʌ|m|θ|ɪ|ŋ|_|ɪ|n|_|dʒ|uː|n|_"
    ),
    "I've got 99 problems": "aɪ|'|v|iː|_|ɡ|ɑː|t|_|n|aɪ|n|t|ɪ|n|aɪ|n|_|p|ɹ|ɑː|b|l|ə|m|z",
    "Dr. Smith paid $5.50": ("d|ɑː|k|t|ɚ|.|s|m|ɪ|θ|_|p|eɪ|d|_|f|aɪ|v|_|d|ɑː|l|ɚ|z|,|f|ɪ|f|t|i|_|s|ɛ|n|ts|_"),
}
"""What the original makes of English runs, with espeak-ng 1.52.0."""


@pytest.mark.parametrize("line", MEASURES)
def test_english_is_what_the_original_says(line):
    assert "|".join(english(line)) == MEASURES[line]


def test_the_boundary_behind_the_last_word_is_left_out():
    assert phonemes("Ropes are humming low") == MEASURES["Ropes are humming low"].split("|")[:-1]
    assert phonemes("low 你")[:3] == ["l", "oʊ", "_"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，hello world", [("zh", "你好，"), ("en", "hello world")]),
        ("...oh 我", [("en", "...oh "), ("zh", "我")]),
        ("1984!", [("en", "1984!")]),
        ("!?…", []),
        ("", []),
        ("Привет oh", [("en", " oh")]),
        ("こんにちは", []),
        ("Él café", [("en", "Él café")]),
    ],
)
def test_a_line_falls_into_runs_of_one_language(text, expected):
    assert language_runs(text) == expected


def test_digits_alone_are_read_in_the_language_of_the_song():
    assert language_runs("99", "zh") == [("zh", "99")]
    assert phonemes("99", "zh") == phonemes("九十九")
    assert phonemes("99", "en") == phonemes("ninety-nine")
    assert main_language("我爱你 baby") == "zh"
    assert main_language("love love love love 我") == "en"


def test_letters_that_nobody_here_can_read_are_named():
    assert unreadable_letters("Привет, ёж! café 你好 ö") == "Пвежиртё"
    assert unreadable_letters("naïve 你好 99!") == ""


@settings(deadline=None, max_examples=60)
@given(st.text("ab'’.,!?…-—–&%$£/1290 你不一儿老虎ñЖあ_`|\t()\"", max_size=24))
def test_no_line_crashes_and_phonemes_hold_no_separators(text):
    spoken = phonemes(text)
    assert all(phone and not set(phone) & set("| \t1290") for phone in spoken)
    assert spoken[-1:] != ["_"] or not text.isascii()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (42, "forty-two"),
        (101, "one hundred one"),
        (3001, "three thousand one"),
        (12345, "twelve thousand, three hundred forty-five"),
        (1_000_001, "one million one"),
        (123_456_789_012, "one hundred twenty-three billion, four hundred fifty-six million, "
         "seven hundred eighty-nine thousand twelve"),
        (10**15, "one" + " zero" * 15),
    ],
)  # fmt: skip
def test_numbers_in_words(number, words):
    assert cardinal(number) == words


def test_ordinals():
    assert [ordinal(n) for n in (1, 12, 20, 53, 112, 1000)] == [
        "first", "twelfth", "twentieth", "fifty-third", "one hundred and twelfth", "one thousandth",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1984", "nineteen eighty-four"),
        ("1905", "nineteen oh five"),
        ("1900", "nineteen hundred"),
        ("2007", "two thousand seven"),
        ("3,000 miles", "three thousand miles"),
        ("$1.01", "one dollar, one cent"),
        ("$0", "zero dollars"),
        ("£20", "twenty pounds"),
        ("1/2", "one half"),
        ("3/4", "three quarters"),
        ("50%", "fifty percent"),
        ("3.5", "three point five"),
        ("the 21st", "the twenty-first"),
        ("Mrs Dr etc", "misess doctor et cetera"),
    ],
)
def test_what_is_spelled_out(text, words):
    assert " ".join(spell_out(text).replace(" ,", ",").split()) == words


@pytest.mark.parametrize(
    ("syllable", "phones"),
    [
        ("ma1", ["m", "a→"]),
        ("hao3", ["x", "ɑʊ↓↑"]),
        ("zhi1", ["ts`⁼ɹ→"]),
        ("ci2", ["tsʰɹ↑"]),
        ("ri4", ["ɹ`ɹ↓"]),
        ("bo1", ["p⁼wo→"]),
        ("wo3", ["uo↓↑"]),
        ("yue4", ["ɥɛ↓"]),
        ("jun1", ["tʃ⁼", "ɥn→"]),
        ("xiong2", ["ʃ", "jʊŋ↑"]),
        ("weng1", ["ʊŋ→"]),
        ("liu2", ["l", "ioʊ↑"]),
        ("er2", ["əɹ↑"]),
        ("de5", ["t⁼", "ə"]),
        ("zi5", ["ts⁼"]),
        ("lv4", ["l", "ɥ↓"]),
        ("yo5", ["i", "o"]),
        ("ng2", ["ən↑"]),
    ],
)
def test_pinyin_as_ipa_with_tones(syllable, phones):
    assert ipa(syllable) == phones


@pytest.mark.parametrize(
    ("word", "tones", "spoken"),
    [
        ("你好", [3, 3], [2, 3]),
        ("老", [3], [3]),
        ("不对", [4, 4], [2, 4]),
        ("不好", [4, 3], [4, 3]),
        ("好不好", [3, 4, 3], [3, 5, 3]),
        ("一样", [1, 4], [2, 4]),
        ("一天", [1, 1], [4, 1]),
        ("第一", [4, 1], [4, 1]),
        ("看一看", [4, 1, 4], [4, 5, 4]),
        ("一月", [1, 4], [1, 4]),
        ("一百", [1, 3], [4, 3]),
        ("十一", [2, 1], [2, 1]),
        ("花儿", [1, 2], [1, 5]),
        ("女儿", [3, 2], [3, 2]),
        ("统一", [3, 1], [3, 1]),
    ],
)
def test_tones_change_inside_words(word, tones, spoken):
    assert sandhi(word, tones) == spoken


def test_words_that_speak_together_are_joined():
    assert join_words(["我", "不", "走", "，", "不"]) == ["我", "不走", "，", "不"]
    assert join_words(["看", "一", "看", "一", "天"]) == ["看一看", "一天"]
    assert join_words(["一", "，", "花", "儿"]) == ["一", "，", "花儿"]


def test_chinese_lines_keep_their_marks_and_read_numbers():
    assert mandarin("你好,不对!") == "n i↑ x ɑʊ↓↑ , p⁼ u↑ t⁼ ueɪ↓ !".split()
    assert mandarin("3天") == mandarin("三天")
    assert mandarin("1.2.3天")[-2:] == ["tʰ", "jɛn→"]


@pytest.mark.parametrize(
    ("module", "reader", "missing", "says"),
    [
        (
            english_side,
            english_side._espeak,
            "espeakng_loader",
            "pip install 'phonemizer>=3.4' espeakng-loader",
        ),
        (pinyin, pinyin._packages, "jieba", "pip install pypinyin jieba cn2an"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(monkeypatch, module, reader, missing, says):
    reader.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"is missing") as caught:
        reader()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    reader.cache_clear()
