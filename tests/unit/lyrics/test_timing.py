"""Untimed lyrics: what holds for every plan, whatever its words, length and tempo."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.errors import DataError
from diffdpo.lyrics.lrc import parse_lrc
from diffdpo.lyrics.syllables import syllables
from diffdpo.lyrics.timing import max_syllable_rate, plan_lyrics, to_lrc

SONG = """[Verse 1]
Morning on the harbour
Ropes are humming low
I count the painted fishing boats

[Chorus]
Oh, light, keep talking
Don't let the evening win

[Solo]

[Verse 2]
You left a paper lantern
Hanging in the hall
"""

line = st.sampled_from(
    ["la", "oh light keep talking", "我在夜里走", "memory another remember", "I'll be there"]
)
stanza = st.lists(line, min_size=1, max_size=5).map("\n".join)
tag = st.sampled_from(["", "[verse]\n", "[Chorus: all]\n", "[solo]\n\n", "[inst]\n[bridge]\n"])
lyrics = st.lists(st.tuples(tag, stanza).map("".join), min_size=1, max_size=6).map("\n\n".join)


@settings(deadline=None, max_examples=60)
@given(lyrics, st.floats(1.0, 300.0), st.floats(40.0, 240.0))
def test_a_plan_covers_the_song_without_gaps_and_in_order(text, duration, tempo):
    song = plan_lyrics(text, duration, tempo=tempo)
    assert song.parts[0].start_s == 0.0
    assert song.parts[-1].end_s == duration
    for before, after in zip(song.parts, song.parts[1:], strict=False):
        assert before.start_s < before.end_s == after.start_s
    assert [part.words for part in song.lines] == [
        raw for raw in text.splitlines() if raw and not raw.startswith("[")
    ]


@settings(deadline=None, max_examples=60)
@given(lyrics, st.floats(1.0, 300.0), st.floats(40.0, 240.0))
def test_every_line_has_the_time_it_needs_or_a_warning(text, duration, tempo):
    song = plan_lyrics(text, duration, tempo=tempo)
    for part in song.lines:
        enough = part.end_s - part.start_s >= part.syllables / max_syllable_rate(tempo) - 1e-9
        assert enough != any(w.startswith(f"line {part.number}: ") for w in song.warnings)


@settings(deadline=None, max_examples=60)
@given(lyrics, st.floats(150.0, 300.0), st.floats(100.0, 240.0))
def test_sections_are_apart_by_a_bar_at_least(text, duration, tempo):
    song = plan_lyrics(text, duration, tempo=tempo)
    bar = 4 * 60 / tempo
    assert all(part.end_s - part.start_s >= bar - 1e-9 for part in song.parts if part.kind != "line")
    for before, after in zip(song.lines, song.lines[1:], strict=False):
        assert (after.number - before.number > 1) == (after.start_s - before.end_s >= bar - 1e-9)


@settings(deadline=None, max_examples=30)
@given(lyrics, st.floats(50.0, 95.0), st.floats(20.0, 300.0))
def test_twice_the_tempo_is_the_same_song_in_half_the_time(text, tempo, duration):
    slow, fast = plan_lyrics(text, duration, tempo=tempo), plan_lyrics(text, duration / 2, tempo=2 * tempo)
    for one, two in zip(slow.parts, fast.parts, strict=True):
        assert one.kind == two.kind
        assert one.start_s == pytest.approx(2 * two.start_s)


def test_what_the_parts_are_and_that_they_stand_on_beats():
    song = plan_lyrics(SONG, 50.0, tempo=120.0)
    kinds = [part.kind for part in song.parts]
    assert kinds == (
        ["intro"] + ["line"] * 3 + ["break"] + ["line"] * 2 + ["instrumental"] + ["line"] * 2 + ["outro"]
    )
    assert [part.section for part in song.lines][::3] == ["verse 1", "chorus", "verse 2"]
    assert all(part.start_s == pytest.approx(round(2 * part.start_s) / 2) for part in song.parts)
    assert song.warnings == ()
    assert song == plan_lyrics(SONG, 50.0, tempo=120.0)


def test_the_usual_pace_is_a_syllable_a_beat():
    song = plan_lyrics("one two three four\nfive six nine ten", 40.0, tempo=60.0)  # 16 + 4 + 4 + 16 beats
    assert [(part.kind, part.end_s - part.start_s) for part in song.parts] == [
        ("intro", 16.0),
        ("line", 4.0),
        ("line", 4.0),
        ("outro", 16.0),
    ]


def test_too_many_words_say_how_long_the_song_would_have_to_be():
    text = "\n".join(["memory another remember together"] * 20)  # 12 syllables, 5 beats at least
    song = plan_lyrics(text, 30.0, tempo=100.0)
    assert song.warnings[-1].startswith("too many words: they need 65 s")  # 100 + 8 beats
    assert plan_lyrics(text, 65.0, tempo=100.0).warnings == ()


def test_a_tag_alone_is_the_intro_the_outro_or_a_pause():
    song = plan_lyrics("[intro]\n[verse]\nla\n[outro]\n", 60.0)
    assert [part.kind for part in song.parts] == ["intro", "line", "outro"]
    assert any("instrumental" in warning for warning in song.warnings)


def test_what_is_not_understood_is_said():
    song = plan_lyrics("[whispered]\nla la\n...\n", 20.0)
    assert song.warnings[0].startswith("line 1: [whispered]")
    assert song.warnings[1].startswith("line 3: nothing to sing")
    assert [part.words for part in song.lines] == ["la la"]


@pytest.mark.parametrize(
    ("text", "duration", "tempo", "says"),
    [
        ("", 60.0, 100.0, "no words"),
        ("[verse]\n...\n", 60.0, 100.0, "no words"),
        ("[00:10.00]la", 60.0, 100.0, "line 1: has a time"),
        ("la", 0.0, 100.0, "must be positive"),
        ("la", 60.0, float("nan"), "must be positive"),
    ],
)
def test_what_cannot_be_planned_is_refused(text, duration, tempo, says):
    with pytest.raises(DataError, match=says):
        plan_lyrics(text, duration, tempo=tempo)


def test_the_lrc_of_a_plan_is_read_back_without_a_warning():
    song = plan_lyrics(SONG, 95.0, tempo=96.0)
    lrc = parse_lrc(to_lrc(song), duration_s=95.0)
    assert lrc.warnings == ()
    assert [words for _, words, _ in lrc.lines] == [part.words for part in song.lines]
    for (start, _, _), part in zip(lrc.lines, song.lines, strict=True):
        assert part.start_s - 0.01 < start <= part.start_s
    assert re.findall(r"\[section:(.*)\]", to_lrc(song)) == [
        "intro",
        "verse 1",
        "break",
        "chorus",
        "solo",
        "verse 2",
        "outro",
    ]


WORDS = {
    1: "clothes missed kissed dreamed times gone hope tie blue shoes whole smile breathes the judged flame miles",
    2: "rhythm something apple being castle couldn't create going lion little lonely nation people quiet science "
    "wanted needed roses judges painted onion language precious harbour lantern saying bottles candles",
    3: "beautiful radio created violin idea usual diamond serious memory another remember together tomorrow",
}


@pytest.mark.parametrize("count", WORDS)
def test_syllables_of_english_words(count):
    assert {word: syllables(word) for word in WORDS[count].split() if syllables(word) != count} == {}


def test_syllables_of_lines():
    assert syllables("Seventeen bottles, forty-two stones") == 9
    assert syllables("I've got 99 problems") == 8  # ninety-nine
    assert syllables("我爱你 baby, don't go") == 3 + 2 + 2
    assert syllables("café naïve") == 4
    assert syllables("... !?") == 0
