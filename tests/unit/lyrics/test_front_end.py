# ruff: noqa: RUF001, SIM905
"""Lyrics on the frame axis: what is parsed, what becomes of it, where it is placed."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import song_row

from diffdpo.errors import DataError
from diffdpo.lyrics.front_end import (
    LYRICS_FRAMES_PER_SECOND,
    VOCABULARY_VARIABLE,
    LyricsFrontEnd,
    front_end,
    place_tokens,
    read_vocabulary,
)
from diffdpo.lyrics.lrc import parse_lrc
from diffdpo.lyrics.phonemes import phonemes
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.encoders import Encoders
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.types import Prompt

PHONES = (", . ? ! _ l oʊ eɪ aɪ n iː t s k ɪ ŋ ɔː h ə w ɜː d æ uo↓↑ aɪ↓ i↓↑ x ɑʊ↓↑ i↑ … '").split()
VOCABULARY = {phone: number for number, phone in enumerate(PHONES)}
RATE = LYRICS_FRAMES_PER_SECOND


def starts(lrc):
    return [(line.start_s, line.words) for line in lrc.lines]


def lines_named(lrc):
    return [warning.split(":")[0] for warning in lrc.warnings]


def test_every_line_is_kept_or_explained():
    lrc = parse_lrc(
        "[ar:Us]\n[00:10.00]one\n[01:02.5]two\nthree\n[00:20.00]\n[00:05.00]zero\n", duration_s=60.0
    )
    assert starts(lrc) == [(5.0, "zero"), (10.0, "one")]
    assert [line.number for line in lrc.lines] == [6, 2]
    assert lines_named(lrc) == ["line 4", "line 5", "lines are not in order of time; sorted", "line 3"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[00:10.00]", "a time without words"),
        ("[00:10.00]   ", "a time without words"),
        ("[00:10.00]...!?", "nothing to sing: '...!?'"),
        ("[00:10.00]42", "only a number, read out: '42'"),
        ("[00:10.00][verse]", "[verse] is a structure tag"),
        ("[chorus]", "a structure tag"),
        ("[Verse 2: all]", "no [mm:ss.xx] time"),
        ("[00:1x.00]la", "no [mm:ss.xx] time"),
        ("[00:10.00]Привет", "letters neither Latin nor Chinese cannot be read: 'Пвеирт'; not sung"),
        ("[00:10.00]Ж oh", "'Ж'; the rest is sung"),
        ("[00:10.00]<00:10.00>oh <00:10.50>light", "times of single words are not used"),
        ("[09:10.00]late", "behind the end"),
        ("[00:59.90]at the very last", "5 syllables in the 0.10 s until the end"),
    ],
)
def test_what_cannot_be_sung_as_written_is_said_with_its_line(line, says):
    lrc = parse_lrc(f"[00:01.00]first\n\n{line}\n", duration_s=60.0)
    assert says in lrc.warnings[0]
    assert lrc.warnings[0].startswith("line 3:")


def test_what_is_fine_gives_no_warning():
    text = "\ufeff[ti:Name]\r\n[length:01:00.00]\r\n\r\n[00:01.00] 你好 baby \r\n[01:02]café\n[01:15,5]oh!\n"
    lrc = parse_lrc(text, duration_s=90.0)
    assert starts(lrc) == [(1.0, "你好 baby"), (62.0, "café"), (75.5, "oh!")]
    assert lrc.warnings == ()


def test_a_line_may_have_several_times_and_an_offset_makes_all_earlier():
    lrc = parse_lrc("[offset:+500]\n[00:10.00][00:50.00]again\n[00:20.00]once\n[00:00.20]soon\n")
    assert starts(lrc) == [(0.0, "soon"), (9.5, "again"), (19.5, "once"), (49.5, "again")]
    assert lrc.warnings == ()


def test_lines_closer_than_they_can_be_sung_are_named():
    lrc = parse_lrc("[00:10.00]one two three four five\n[00:10.50]six\n[00:11.00]nine")
    assert len(lrc.warnings) == 1
    assert lrc.warnings[0].startswith(
        "line 1: 5 syllables in the 0.50 s until line 2; words are lost below 0.6"
    )


def test_tokens_stand_from_the_start_of_their_line_one_a_frame():
    tokens = place_tokens([(0.5, (7, 8, 9)), (2.0, (5,))], 30, 10.0)
    assert tokens.nonzero().flatten().tolist() == [5, 6, 7, 20]
    assert tokens[5:8].tolist() == [7, 8, 9]


def test_a_line_never_overwrites_the_one_before():
    tokens = place_tokens([(0.0, (1, 2, 3, 4)), (0.2, (9,))], 10, 10.0)
    assert tokens.tolist() == [1, 2, 3, 4, 9, 0, 0, 0, 0, 0]


def test_a_line_at_the_end_of_an_excerpt_is_cut_where_the_excerpt_is():
    assert place_tokens([(0.8, (1, 2, 3))], 10, 10.0).tolist()[-2:] == [1, 2]
    assert torch.equal(place_tokens([], 4, 10.0), torch.zeros(4, dtype=torch.int64))


def numbers(text):
    return tuple(VOCABULARY[phone] + 1 for phone in text.split())


def test_a_line_is_its_phonemes_plus_one_with_commas_inside_and_a_full_stop_behind():
    encoded = LyricsFrontEnd(VOCABULARY).encode("[00:02.00]Oh. light, talking", "en", 20.0)
    assert encoded.lines == ((2.0, numbers("oʊ , l aɪ t , t ɔː k ɪ ŋ .")),)
    assert encoded.warnings == ()
    assert encoded.phonemes == (tuple("oʊ . l aɪ t , t ɔː k ɪ ŋ".split()),)


def test_both_languages_in_one_line():
    encoded = LyricsFrontEnd(VOCABULARY).encode("[00:02.00]我爱你，hello", None, 20.0)
    assert encoded.lines[0][1] == numbers("uo↓↑ aɪ↓ n i↓↑ , h ə l oʊ .")


def test_phonemes_that_the_vocabulary_lacks_are_left_out_and_named():
    encoded = LyricsFrontEnd(VOCABULARY).encode("[00:02.00]oh maybe\n[00:05.00]mum\n", "en", 20.0)
    assert encoded.lines == ((2.0, numbers("oʊ _ eɪ iː .")),)
    assert encoded.warnings == (
        "line 1: not in the vocabulary, left out: b m",
        "line 2: not in the vocabulary, left out: m ʌ",
        "line 2: no phonemes to sing: 'mum'",
    )


LATE = "[00:05.00]oh oh oh\n[00:09.90]talking light\n"


def test_the_last_line_is_whole_cut_or_dropped():
    frames = int(10 * RATE)
    first, last = phonemes("oh oh oh"), phonemes("talking light")
    cut = LyricsFrontEnd(VOCABULARY, end="cut").encode(LATE, "en", 10.0)
    assert int(cut.lines[1][0] * RATE) + len(last) + 1 > frames
    assert cut.lines[1][0] == 9.9
    assert len(LyricsFrontEnd(VOCABULARY, end="drop").encode(LATE, "en", 10.0).lines) == 1
    whole = LyricsFrontEnd(VOCABULARY).encode(LATE, "en", 10.0)
    placed = place_tokens(whole.lines, frames, RATE)
    assert placed[-len(last) - 1 :].tolist() == [VOCABULARY[phone] + 1 for phone in last] + [2]
    assert whole.lines[0] == (5.0, (*(VOCABULARY[phone] + 1 for phone in first), 2))
    assert any("the line at 9.90 s is placed at 9." in warning for warning in whole.warnings)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=8, unique=True), st.floats(1.0, 12.0))
def test_no_token_is_lost_while_there_are_frames_enough(hundredths, duration):
    times = [f"[00:{h / 999 * duration:05.2f}]oh light talking" for h in sorted(hundredths)]
    reader = LyricsFrontEnd(VOCABULARY)
    lrc = parse_lrc("\n".join(times), duration_s=duration)
    encoded = reader.encode("\n".join(times), "en", duration)
    wanted = [token for _, line in encoded.lines for token in line]
    frames = int(duration * RATE)
    placed = place_tokens(encoded.lines, frames, RATE)
    kept = placed[placed > 0].tolist()
    assert len(encoded.lines) == len(lrc.lines)
    assert kept == wanted if len(wanted) <= frames else kept == wanted[: len(kept)]
    assert (len(wanted) > frames) == any(warning.endswith("there are; cut") for warning in encoded.warnings)


def test_lyrics_without_times_are_planned():
    encoded = LyricsFrontEnd(VOCABULARY).encode("[ti:Name]\n[verse]\noh light\ntalking\n", None, 30.0)
    assert len(encoded.lines) == 2
    assert 0 < encoded.lines[0][0] < encoded.lines[1][0] < 30
    assert encoded.warnings[0].startswith("no times")


@pytest.mark.parametrize(
    "lyrics",
    [
        "",
        "\n\n",
        "[verse]\n",
        "[00:1x.00]oh",
        "[ti:oh]\n[length:01:00]",
        "...",
        "[00:01.00]",
        "[ti:x]",
        "Привет",
        "[00:01.00]?",
    ],
)
def test_lyrics_with_nothing_to_sing_are_an_instrumental(lyrics):
    assert LyricsFrontEnd(VOCABULARY).encode(lyrics, None, 30.0).lines == ()


def test_languages_that_cannot_be_read_are_refused():
    reader = LyricsFrontEnd(VOCABULARY)
    for language in (None, "en", "EN-us", "zh_CN", "zh"):
        assert len(reader.lines("[00:01.00]oh", language, 10.0)) == 1
    with pytest.raises(DataError, match="'de' cannot be read"):
        reader.lines("[00:01.00]oh", "de", 10.0)


def test_the_vocabulary_comes_from_a_path_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(VOCABULARY_VARIABLE, raising=False)
    assert front_end() is None
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"vocab": VOCABULARY}))
    assert read_vocabulary(path) == VOCABULARY
    monkeypatch.setenv(VOCABULARY_VARIABLE, str(path))
    assert front_end().size == len(PHONES)
    path.write_text(json.dumps({",": 0, ".": 1, "_": 2, "oʊ": 3}))
    assert front_end(str(path), embeddings=4).tokens(["oʊ", "x"]) == (4, 2)
    with pytest.raises(DataError, match="4 phonemes, but the network has embeddings for 3 only"):
        front_end(str(path), embeddings=3)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"vocab": {"a": "b"}}', '{"vocab": {"a": 1}}', "no json", '{"vocab": []}']
)
def test_another_file_is_no_vocabulary(tmp_path, content):
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"vocab\.json"):
        read_vocabulary(path)


def test_the_lyrics_of_a_prompt_reach_the_network_as_tokens_on_its_frames():
    network = DiffRhythmTransformer(dim=32, depth=2, num_attention_heads=4, latent_channels=3, text_dim=16)
    spec = LatentSpec(channels=3, frames_per_second=RATE, sample_rate=44100, max_frames=2048)
    model = DiffRhythm(network=network, spec=spec, encoders=Encoders(lyrics=LyricsFrontEnd(VOCABULARY)))
    prompts = [
        Prompt(id="a", lyrics="[00:01.00]oh\n[00:02.00]light", duration_s=4.0),
        Prompt(id="b", duration_s=4.0),
    ]
    tokens = model.condition([song_row(model, prompt) for prompt in prompts], spec.frames(4.0))["lyrics"]
    assert tokens.shape == (2, 86)
    assert tokens[0].nonzero().flatten().tolist() == [21, 22, 43, 44, 45, 46]
    assert tuple(tokens[0, 43:47].tolist()) == numbers("l aɪ t .")
    assert not tokens[1].any()
