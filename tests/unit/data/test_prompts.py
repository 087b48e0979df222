"""Prompt files are checked before any work is done."""

import json

import pytest

from diffdpo.data.prompts import check_disjoint, in_share, negative_prompt, prompt_row, read_prompts
from diffdpo.errors import DataError
from diffdpo.types import CONTROLS, Prompt


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_prompt_is_read_with_its_defaults(tmp_path):
    path = write(tmp_path, {"id": "a", "text": "slow metal", "duration_s": 12}, "")
    (prompt,) = read_prompts(path)
    assert (prompt.text, prompt.duration_s, prompt.controls) == ("slow metal", 12, ())
    assert prompt.group == Prompt(id="b", text="slow metal").group != Prompt(id="a", text="fast metal").group


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{nope", r"prompts.jsonl:2: not valid JSON"),
        ("[1]", "expected an object"),
        ({"text": "x"}, "a prompt needs an id"),
        ({"id": ".."}, "may not be of dots only"),
        ({"id": "a/b"}, "path separator"),
        ({"id": "ok"}, "the id 'ok' is used twice"),
        ({"id": "x", "txet": "y"}, r"unknown key 'txet'. Did you mean 'text'\?"),
        ({"id": "x", "duration_s": 0}, "duration_s must be positive"),
        ({"id": "x", "duration_s": -3}, "duration_s must be positive"),
        ('{"id": "x", "duration_s": NaN}', "nan is not a number of JSON"),
        ({"id": "x", "duration_s": "long"}, "duration_s must be a number"),
        ({"id": "x", "text": 3}, "text must be a string"),
        ({"id": "x", "style_audio": "no.wav"}, "no such file"),
        ({"id": "x", "lyrics": "no.lrc"}, "no such file"),
        ({"id": "x", "start": 1.0}, r"start must be a fraction of the song in \[0, 1\), got 1\.0"),
        ({"id": "x", "start": "0"}, r"start must be a fraction"),
        ({"id": "x", "bpm": 12}, "bpm must be a number of beats a minute, 20 to 400, got 12"),
        ({"id": "x", "bpm": True}, "bpm must be a number of beats"),
        ({"id": "x", "key": ""}, "key must be text such as 'A minor', got ''"),
        ({"id": "x", "metre": 3}, "metre must be text such as '3/4', got 3"),
        ({"id": "x", "sections": [[-1, "verse"]]}, "sections must be pairs of a start in seconds and a name"),
        ({"id": "x", "sections": "verse"}, "sections must be pairs"),
        ({"id": "x", "axis": 1}, "axis must be the name of an axis"),
        ({"id": "x", "controls": [1]}, "controls must be an object of names and values"),
        ({"id": "x", "bmp": 120}, r"unknown key 'bmp'. Did you mean 'bpm'\?"),
    ],
)
def test_every_mistake_names_its_line(tmp_path, line, says):
    path = write(tmp_path, {"id": "ok", "text": "fine"}, line)
    with pytest.raises(DataError, match=says) as caught:
        read_prompts(path)
    assert ":2: " in str(caught.value)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts(write(tmp_path, ""))


def test_lyrics_may_be_a_file_beside_the_prompts(tmp_path):
    (tmp_path / "song.lrc").write_text("[00:01.00]la la")
    (prompt,) = read_prompts(write(tmp_path, {"id": "a", "lyrics": "song.lrc"}))
    assert prompt.lyrics == "[00:01.00]la la"


@pytest.mark.parametrize("name", ["SONG.LRC", "Song.Txt", " song.lrc "])
def test_lyrics_in_a_file_of_any_case_are_read(tmp_path, name):
    (tmp_path / name.strip()).write_text("\ufeff[00:00.30]hello world", encoding="utf-8")
    (prompt,) = read_prompts(write(tmp_path, {"id": "a", "lyrics": name}))
    assert prompt.lyrics == "[00:00.30]hello world"


@pytest.mark.parametrize(
    "name", ["song.srt", "SONG.VTT", "Words.docx", "words/song", "../words", "lyrics/a.abc", "~/song"]
)
def test_words_that_look_like_a_file_are_never_lyrics(tmp_path, name):
    looks = name not in ("words/song",)
    path = write(tmp_path, {"id": "a", "lyrics": name})
    if looks:
        with pytest.raises(DataError, match=r"prompts\.jsonl:1: lyrics .*: a file of this kind is not read"):
            read_prompts(path)
    else:
        assert read_prompts(path)[0].lyrics == name  # and/or is no path


@pytest.mark.parametrize("words", ["[00:01.00]read my.txt", "one\nsong.lrc", "and/or", "No. 5", "I said no."])
def test_words_that_do_not_look_like_a_file_are_lyrics(tmp_path, words):
    assert read_prompts(write(tmp_path, {"id": "a", "lyrics": words}))[0].lyrics == words


@pytest.mark.parametrize("key", ["style_audio", "lyrics"])
def test_a_name_too_long_for_a_file_is_no_file(tmp_path, key):
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: "):
        read_prompts(write(tmp_path, {"id": "a", key: "a" * 300 + ".txt"}))


def test_shares_go_by_group_and_have_about_their_size():
    inside = [in_share(f"group-{i}", 0.3) for i in range(4000)]
    assert sum(inside) / 4000 == pytest.approx(0.3, abs=0.03)
    assert in_share("group-7", 0.3) == inside[7]


def test_a_group_on_both_sides_is_refused():
    with pytest.raises(DataError, match="both the mining and the evaluation"):
        check_disjoint([Prompt(id="a", text="x")], [Prompt(id="b", text="x")])
    check_disjoint([Prompt(id="a", text="x")], [Prompt(id="b", text="y")])


def test_controls_are_sorted_pairs_and_those_of_one_model_stand_under_a_key_of_their_own(tmp_path):
    """A prompt is hashable; its line, written and read again, is itself."""
    line = {
        "id": "a", "text": "slow", "start": 0.5, "bpm": 92, "key": "A minor",
        "sections": [[0, "verse"], [8.5, "chorus"]], "controls": {"swing": 0.2, "bars": [[4, "half"]]},
    }  # fmt: skip
    (prompt,) = read_prompts(write(tmp_path, line))
    assert prompt.controls == (
        ("bars", ((4, "half"),)),
        ("bpm", 92),
        ("key", "A minor"),
        ("sections", ((0, "verse"), (8.5, "chorus"))),
        ("start", 0.5),
        ("swing", 0.2),
    )
    assert hash(prompt) == hash(read_prompts(write(tmp_path, line))[0])
    (again,) = read_prompts(write(tmp_path, prompt_row(prompt)))
    assert again == prompt
    assert again.control("bpm") == 92
    assert again.control("metre") is None
    faster = again.with_control("bpm", 120).with_control("axis", "rhythm.pulse")
    assert [name for name, _ in faster.controls] == sorted(name for name, _ in faster.controls)
    assert (faster.control("bpm"), faster.control("axis"), again.control("bpm")) == (120, "rhythm.pulse", 92)


def test_values_of_another_type_are_no_values_of_a_control():
    """Whatever JSON holds; the types of a prompt's own fields are checked where a line is read."""
    for name, control in CONTROLS.items():
        for value in (
            None,
            True,
            [],
            {},
            (1,),
            (("verse", 0),),
            ((0, "verse", 1),),
            ((0, " "),),
            float("nan"),
        ):
            assert not control.accepts(value), (name, value)
    for name, value in (
        ("bpm", 20),
        ("start", 0.0),
        ("key", "A"),
        ("sections", ()),
        ("sections", ((0, "verse"),)),
    ):
        assert CONTROLS[name].accepts(value)
    assert not CONTROLS["bpm"].accepts(400)
    assert not CONTROLS["start"].accepts(1)


def test_controls_that_are_not_sorted_or_stand_twice_are_refused():
    for controls in ((("key", "A"), ("bpm", 90)), (("bpm", 90), ("bpm", 91))):
        with pytest.raises(ValueError, match="controls must be sorted by name and differ"):
            Prompt(id="a", controls=controls)


def test_lyrics_that_are_not_there_and_lyrics_that_say_nothing_is_sung_differ(tmp_path):
    path = write(tmp_path, {"id": "a"}, {"id": "b", "lyrics": ""})
    assert [prompt.lyrics for prompt in read_prompts(path)] == [None, ""]
    assert "lyrics" not in prompt_row(read_prompts(path)[0])
    assert prompt_row(read_prompts(path)[1])["lyrics"] == ""


def test_the_negative_branch_has_the_negative_style_nothing_sung_and_its_place_in_the_song():
    prompt = Prompt(
        id="a",
        text="x",
        style_audio="x.flac",
        negative_text="noise",
        lyrics="[00:01.00]la",
        controls=(("axis", "harmony.key"), ("bpm", 90), ("start", 0.25)),
        duration_s=7,
    )
    negative = negative_prompt(prompt)
    assert (negative.text, negative.negative_text, negative.style_audio) == ("noise", None, None)
    assert (negative.lyrics, negative.controls, negative.duration_s) == ("", (("start", 0.25),), 7)
    assert negative_prompt(Prompt(id="a", text="x", controls=(("bpm", 90),))) is None
    assert negative_prompt(Prompt(id="a", negative_text="")).controls == ()
