# ruff: noqa: RUF001
"""Sections as people name them, words that merely contain such names, and lines that are no lyrics."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.errors import DataError
from diffdpo.lyrics.doubts import check_line
from diffdpo.lyrics.front_end import LyricsFrontEnd
from diffdpo.lyrics.lrc import parse_lrc
from diffdpo.lyrics.section_names import read_header
from diffdpo.lyrics.sections import read_sections
from diffdpo.lyrics.timing import plan_lyrics

NAMES = {
    "verse 1": ["(Verse 1)", "[Verse 1]", "{verse 1}", "<Verse 1>", "Verse 1", "VERSE 1:", "**Verse 1**",
                "## Verse 1",
                "[Verse 1: Anna]", "(Verse 1 - softly)", "**Verse 1:**", "[[Verse 1]]", "- Verse 1 -",
                "Ｖｅｒｓｅ 1："],
    "chorus": ["(Chorus)", "Chorus:", "chorus", "__Chorus__", "Chorus x2", "[Chorus (x2)]", "【Chorus】"],
    "bridge": ["**Bridge**", "(bridge)", "Bridge", "=== Bridge ==="],
    "pre-chorus": ["Pre-Chorus", "(Pre-Chorus)", "[pre-chorus]:"],
    "instrumental": ["Instrumental", "(Instrumental)"],
    "outro": ["Outro", "[Outro]", "*Outro*"],
    "solo": ["[solo]", "(Solo)", "Solo:", "**Solo**"],
    "guitar solo": ["Guitar solo", "(guitar  solo)"],
    "主歌": ["【主歌】", "（主歌）", "[主歌]", "主歌：", "主歌", "《主歌》"],
    "副歌2": ["副歌2", "[副歌2]", "（副歌2）："],
    "桥段": ["(桥段)", "［桥段］", "桥段:"],
}  # fmt: skip


@pytest.mark.parametrize(("line", "name"), [(line, name) for name, lines in NAMES.items() for line in lines])
def test_a_section_in_any_common_form_is_a_section(line, name):
    sections, warnings = read_sections(f"{line}\nla la la\n")
    assert [(section.name, [words for words, _ in section.lines]) for section in sections] == [
        (name, ["la la la"])
    ]
    assert all("repeat" in warning for warning in warnings)
    timed = parse_lrc(f"[00:01.00]{line}\n[00:05.00]la la la\n")
    assert [words for _, words, _ in timed.lines] == ["la la la"]
    assert "structure tag" in timed.warnings[0]


@pytest.mark.parametrize(
    "line",
    [
        "Chorus of angels", "Bridge over troubled water", "Verse by verse I sing", "Hook, line and sinker",
        "My outro", "Intro to my heart", "Refrain from this", "Breaking", "Oh (oh my) oh", "4x4",
        "Artist of the year",
        "主歌在唱", "A", "I love you", "And/or you", "Bring me home 2 times a day", "Title fight", "No",
        "I am at home",
    ],
)  # fmt: skip
def test_a_line_that_merely_holds_such_a_word_is_sung_as_it_is(line):
    assert read_header(line) is None
    assert check_line(line) == (line, [])
    assert parse_lrc(f"[00:01.00]{line}").lines[0].words == line


def test_words_behind_a_name_are_a_line_of_the_section():
    sections, warnings = read_sections("[Verse 1] I walk the river\nDown to the sea\nChorus: Bring me home\n")
    assert sections == [
        ("verse 1", [("I walk the river", 1), ("Down to the sea", 2)]),
        ("chorus", [("Bring me home", 3)]),
    ]
    assert warnings == []


def test_the_song_whose_sections_stand_in_three_forms():
    verse, chorus = "(Verse 1)\nI walk the river down to the sea\n", "Chorus:\nBring me home again\n"
    song = plan_lyrics(f"{verse}\n{chorus}\n**Bridge**\nLet the morning come\n", 20.0)
    assert [(part.section, part.words) for part in song.lines] == [
        ("verse 1", "I walk the river down to the sea"),
        ("chorus", "Bring me home again"),
        ("bridge", "Let the morning come"),
    ]
    assert not [warning for warning in song.warnings if warning.startswith("line")]


@pytest.mark.parametrize(
    "line",
    [
        "x2", "(x2)", "[x2]", "×3", "(repeat)", "https://example.org/lyrics", "www.example.org", "Title: Name",
        "作词 : 某人", "Lyrics by: Somebody", "00:00:01,000 --> 00:00:02,000", "WEBVTT", "# A title",
        "© 2020 Somebody",
    ],
)  # fmt: skip
def test_what_is_never_lyrics_is_not_sung_and_said(line):
    sections, warnings = read_sections(f"la la\n{line}\nla\n")
    assert [words for section in sections for words, _ in section.lines] == ["la la", "la"]
    assert len(warnings) == 1
    assert warnings[0].startswith("line 2: ")
    timed = parse_lrc(f"[00:01.00]{line}")
    assert timed.lines == ()
    assert len(timed.warnings) == 1


@pytest.mark.parametrize(
    "line",
    [
        "Solo", "Break", "(whispering)", "Oh (whispered) oh", "I [sighs] go", "*sighs*", "[Am]Paper [G]boats",
        "Am  G  C  F", "42", "see www.example.org now", "song.lrc", "Written by Somebody", "0:12 hello",
        "(00:12) hello",
        "123Embed", "You might also like", "1. Verse", "男：我爱你", "la " * 300,
    ],
)  # fmt: skip
def test_what_may_be_no_lyrics_is_sung_with_a_warning(line):
    words, warnings = check_line(line)
    assert words == line
    assert len(warnings) == 1
    assert parse_lrc(f"[00:01.00]{line}").lines
    assert any(warnings[0].split(",")[0] in warning for warning in parse_lrc(f"[00:01.00]{line}").warnings)


@pytest.mark.parametrize("mark", ["(x2)", "x2", "[2x]", "(×3)"])
def test_a_mark_of_repetition_behind_a_line_is_cut_off_and_said(mark):
    words, warnings = check_line(f"Bring me home {mark}")
    assert words == "Bring me home"
    assert len(warnings) == 1
    assert mark in warnings[0]


def test_a_byte_order_mark_before_a_single_timed_line_is_passed_over():
    encoded = LyricsFrontEnd({",": 0, ".": 1, "_": 2, "oʊ": 3}).encode("\ufeff[00:01.00]oh", "en", 10.0)
    assert [start for start, _ in encoded.lines] == [1.0]
    assert encoded.warnings == ()


@pytest.mark.parametrize("lyrics", ["SONG.LRC", "song.srt", "Song.Txt", "../words/song.abc"])
def test_the_name_of_a_file_is_never_sung(lyrics):
    with pytest.raises(DataError, match="the name of a file"):
        LyricsFrontEnd({",": 0, ".": 1, "_": 2}).encode(lyrics, "en", 10.0)
    with pytest.raises(DataError, match="the name of a file"):
        plan_lyrics(lyrics, 30.0)


words = st.lists(
    st.sampled_from(["oh", "light", "talking", "river", "down", "我", "爱"]), min_size=2, max_size=6
)
header = st.sampled_from([line for lines in NAMES.values() for line in lines])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(header, st.lists(words.map(" ".join), min_size=1, max_size=3)), min_size=1, max_size=5)
)
def test_no_line_is_lost_and_no_name_is_sung(song):
    text = "\n".join("\n".join([line, *lines]) for line, lines in song)
    sections, _ = read_sections(text)
    assert [[line for line, _ in section.lines] for section in sections] == [lines for _, lines in song]


@settings(max_examples=150)
@given(st.text(st.sampled_from("[](){}<>*#:-x2ab .,\n【】（）副歌\ufeff\u2028"), max_size=60))
def test_whatever_is_pasted_every_line_is_sung_a_header_or_said(text):
    sections, warnings = read_sections(text)  # there is no digit for a time but 2, and none has two
    sung = {number for section in sections for _, number in section.lines}
    named = {int(warning.split(":")[0].removeprefix("line ")) for warning in warnings}
    for number, raw in enumerate(text.replace("\ufeff", "").splitlines(), start=1):
        if raw.strip() and number not in sung | named:
            assert read_header(raw) is not None or raw.lstrip().startswith("[")
