"""Prompt files are checked before any work is done."""

import json

import pytest

from diffdpo.data.prompts import check_disjoint, in_share, negative, read_prompts
from diffdpo.errors import DataError
from diffdpo.types import Prompt


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_prompt_is_read_with_its_defaults(tmp_path):
    path = write(tmp_path, {"id": "a", "text": "slow metal", "duration_s": 12}, "")
    (prompt,) = read_prompts(path)
    assert (prompt.text, prompt.duration_s, prompt.start) == ("slow metal", 12, 0.0)
    assert prompt.group == Prompt(id="b", text="slow metal").group != Prompt(id="a", text="fast metal").group


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{nope", r"prompts.jsonl:2: not valid JSON"),
        ("[1]", "expected an object"),
        ({"text": "x"}, "a prompt needs an id"),
        ({"id": ".."}, "a prompt needs an id"),
        ({"id": "a/b"}, "path separator"),
        ({"id": "ok"}, "the id 'ok' is used twice"),
        ({"id": "x", "txet": "y"}, r"unknown key 'txet'. Did you mean 'text'\?"),
        ({"id": "x", "duration_s": 0}, "duration_s must be positive"),
        ({"id": "x", "duration_s": -3}, "duration_s must be positive"),
        ('{"id": "x", "duration_s": NaN}', "duration_s must be positive"),
        ({"id": "x", "duration_s": "long"}, "duration_s must be a number"),
        ({"id": "x", "text": 3}, "text must be a string"),
        ({"id": "x", "style_audio": "no.wav"}, "no such file"),
        ({"id": "x", "lyrics": "no.lrc"}, "no such file"),
        ({"id": "x", "start": 1.0}, "start is a fraction"),
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


def test_shares_go_by_group_and_have_about_their_size():
    inside = [in_share(f"group-{i}", 0.3) for i in range(4000)]
    assert sum(inside) / 4000 == pytest.approx(0.3, abs=0.03)
    assert in_share("group-7", 0.3) == inside[7]


def test_a_group_on_both_sides_is_refused():
    with pytest.raises(DataError, match="both the mining and the evaluation"):
        check_disjoint([Prompt(id="a", text="x")], [Prompt(id="b", text="x")])
    check_disjoint([Prompt(id="a", text="x")], [Prompt(id="b", text="y")])


def test_the_negative_branch_has_the_negative_style_and_no_lyrics():
    prompt = Prompt(
        id="a", text="x", negative_text="noise", lyrics="[00:01.00]la", lyric_lines=((1.0, (3,)),)
    )
    against = negative(prompt)
    assert (against.text, against.lyrics, against.lyric_lines, against.style) == ("noise", None, (), None)
