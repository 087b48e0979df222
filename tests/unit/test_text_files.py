"""Text and JSON lines: what editors and programs write is read, and what cannot be meant is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffdpo.config import read_yaml
from diffdpo.data.prompts import read_prompts
from diffdpo.data.song_manifest import read_songs
from diffdpo.errors import ConfigError, DataError, UserError
from diffdpo.lyrics.front_end import read_vocabulary
from diffdpo.runs import atomic_write, read_json
from diffdpo.text_files import printable, read_jsonl, read_text

one_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(st.dictionaries(texts, values, max_size=3), max_size=4)


@one_folder
@given(rows, st.booleans(), st.sampled_from(["", "\ufeff"]), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_rows_come_back_whatever_their_text_and_however_json_writes_it(
    tmp_path, content, is_ascii, mark, end
):
    path = tmp_path / "a.jsonl"
    text = mark + "".join(json.dumps(row, ensure_ascii=is_ascii) + end for row in content)
    path.write_bytes(text.encode())
    assert [row for _, row in read_jsonl(path)] == content


@one_folder
@given(st.text(st.characters(codec="utf-8")))
def test_text_comes_back_as_it_was_written(tmp_path, text):
    path = tmp_path / "a.txt"
    atomic_write(path, "\ufeff" + text)
    assert read_text(path) == text


@one_folder
@given(st.binary(max_size=40))
def test_whatever_bytes_a_file_holds_it_is_read_or_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": ' + content + b"}")
    complaint = f"{path}:"
    try:
        list(read_jsonl(path))
    except DataError as error:
        complaint = str(error)
    assert complaint.startswith(f"{path}:")
    assert "\n" not in complaint


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e"])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_separator_inside_a_text_ends_no_line(tmp_path, sign, is_ascii):
    path = tmp_path / "prompts.jsonl"
    row = {"id": "a", "text": f"calm{sign}piano", "duration_s": 2}
    path.write_text(json.dumps(row, ensure_ascii=is_ascii) + "\n", encoding="utf-8")
    (prompt,) = read_prompts(path)
    assert prompt.text == f"calm{sign}piano"


def test_marks_inside_a_file_put_together_from_two_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\n\ufeff{"a": 2}\n', encoding="utf-8")
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "a", "duration_s": NaN}', "nan is not a number of JSON"),
        ('{"id": "a", "start": -Infinity}', "-inf is not a number of JSON"),
        ('{"id": "a", "duration_s": 1e999}', "inf is not a number of JSON"),
        ('{"id": "a", "bpm": 1' + "0" * 400 + "}", "an integer of more than 64 bits"),
        ('{"id": "a", "bpm": ' + "1" * 5000 + "}", "an integer of too many digits"),
        ('{"id": "a", "id": "b"}', "the key 'id' is there twice"),
        (r'{"id": "a", "text": "\ud800"}', "half of a character"),
        (r'{"\ud800": "a"}', "half of a character"),
        (r'{"id": "a\udc80"}', "control characters"),
        (r'{"id": "a", "text": "caf\udce9"}', "text holds a part of a character"),
        ('{"id": "a", "controls": ' + "[" * 40 + "]" * 40 + "}", "more than 32 objects and lists"),
        ('{"id": ' + "[" * 100000, "objects and lists within each other"),
        ("\ufeff\ufeff[]", "expected an object"),
    ],
)
def test_what_nobody_means_is_one_line_with_file_and_number(tmp_path, line, says):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{" * 100000, '{"a": ' + "1" * 5000 + "}", "", '{"a"'])
def test_json_that_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"^\S*a\.json: ") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


NOT_UTF8 = "caf\u00e9\n".encode("latin-1")


READERS = {
    "text": read_text,
    "JSON lines": lambda path: list(read_jsonl(path)),
    "JSON": read_json,
    "YAML": read_yaml,
    "vocabulary": read_vocabulary,
    "prompts": read_prompts,
    "songs": lambda path: read_songs(path, 0.0),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_another_encoding_is_one_line_that_names_the_file_and_the_way_out(tmp_path, read):
    path = tmp_path / "words"
    path.write_bytes(b"# one\n" + NOT_UTF8)
    with pytest.raises(
        UserError, match=r"words: not UTF-8 \(line 2: .* at byte 9\); save it as UTF-8"
    ) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_lyrics_in_gbk_named_by_a_prompt_are_one_line(tmp_path):
    (tmp_path / "song.lrc").write_bytes("[00:01.00]你好世界\n".encode("gbk"))
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "lyrics": "song.lrc"}\n')
    with pytest.raises(
        DataError, match=r"prompts\.jsonl:1: lyrics .*song\.lrc: not UTF-8 .*; save it as UTF-8"
    ):
        read_prompts(path)


@pytest.mark.parametrize("content", ["- a\n- b\n", "[" * 5000, "7"])
def test_yaml_without_keys_and_values_is_one_line(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"a\.yaml: ") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_name_too_long_are_one_line(tmp_path):
    for path, says in ((tmp_path, "is a folder"), (tmp_path / ("a" * 300), "cannot be read"),
                       (tmp_path / "a\0b", "no such file"), (tmp_path / "none", "no such file")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            read_text(path)


def test_text_is_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "text": "caf\u00e9 jazz"}\n', encoding="utf-8")
    code = "import sys; from pathlib import Path; from diffdpo.text_files import read_jsonl\n"
    code += "print(ascii(list(read_jsonl(Path(sys.argv[1])))))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "caf\\xe9 jazz" in done.stdout


def test_names_that_are_not_utf8_are_written_as_json_escapes_them(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    atomic_write(tmp_path / "a.jsonl", json.dumps({"style_audio": name}, ensure_ascii=False))
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, {"style_audio": name})]
    assert printable(name) == "caf\\udce9"
