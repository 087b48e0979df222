"""`diffdpo lyrics` as a person meets it, and the comparison with measured lyrics."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from diffdpo.cli import app
from diffdpo.errors import DataError
from tools.parity import lyrics as golden_lyrics

runner = CliRunner()
VOCABULARY = {",": 0, ".": 1, "?": 2, "!": 3, "_": 4, "ɹ": 5, "oʊ": 6, "p": 7, "s": 8, "l": 9, "h": 10}


def lyrics(*words):
    return runner.invoke(app, ["lyrics", *map(str, words)])


@pytest.mark.parametrize("words", [["lyrics", "--help"], ["lyrics", "plan", "--help"]])
def test_help_does_not_import_torch(words):
    code = f"import sys; sys.argv = ['diffdpo', *{words}]; from diffdpo.cli import app\ntry: app()\n"
    code += "except SystemExit: pass\nassert not {'torch', 'numpy', 'phonemizer'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "plan" in done.stdout


def test_a_plan_is_written_checked_and_not_written_over(tmp_path):
    words, song = tmp_path / "words.txt", tmp_path / "song.lrc"
    words.write_text("[verse]\nRopes are humming low\n\n[chorus]\nOh, light\n")
    plan = lyrics("plan", words, "--duration", 30, "--tempo", 120, "--out", song)
    assert plan.exit_code == 0, plan.stderr
    assert "[section:chorus]" in song.read_text()
    checked = lyrics("check", song, "--duration", 30)
    assert checked.exit_code == 0
    assert [line.split("  ")[-1] for line in checked.stdout.splitlines()] == [
        "Ropes are humming low",
        "Oh, light",
    ]
    song.write_text("edited")
    refused = lyrics("plan", words, "--duration", 30, "--out", song)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert song.read_text() == "edited"
    assert lyrics("plan", words, "--duration", 30, "--out", song, "--force").exit_code == 0
    assert song.read_text() == lyrics("plan", words, "--duration", 30).stdout


def test_warnings_of_dense_lyrics_name_the_file_and_the_line(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("memory another remember together\n" * 9)
    planned = lyrics("plan", words, "--duration", 10)
    assert planned.exit_code == 0
    assert "words.txt: line 9: 12 syllables in" in planned.stderr.replace("\n", "")
    assert "too many words" in planned.stderr


def test_a_vocabulary_shows_the_phonemes_that_would_be_sung(tmp_path):
    song, vocabulary = tmp_path / "song.lrc", tmp_path / "vocab.json"
    song.write_text("[00:01.50]Ropes\n[00:03.00]low\n")
    vocabulary.write_text(json.dumps({"vocab": VOCABULARY}))
    checked = lyrics("check", song, "--vocab", vocabulary)
    assert checked.stdout == "    1.50  ɹ oʊ p s\n    3.00  l oʊ\n"


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        (b"\xff\xfe", ["plan", "FILE", "--duration", "30"], "not UTF-8"),
        (b"[verse]\n", ["plan", "FILE", "--duration", "30"], "hold no words"),
        (b"[00:01.00]la", ["plan", "FILE", "--duration", "30"], "has a time"),
        (b"la", ["plan", "FILE", "--duration", "-1"], "must be positive"),
        (b"la", ["plan", "elsewhere.txt", "--duration", "30"], "no such file"),
        (b"la", ["check", "FILE"], "no line of the form"),
        (b"[00:01.00]la", ["check", "FILE", "--vocab", "FILE"], "not valid JSON"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(tmp_path, content, words, says):
    path = tmp_path / "song.txt"
    path.write_bytes(content)
    result = lyrics(*(path if word == "FILE" else word for word in words))
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert says in line


@pytest.fixture
def measured(tmp_path):
    """A folder in the manner of the measured ones, with a vocabulary of ours and one line worked out by hand."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vocab.json").write_text(json.dumps({"vocab": VOCABULARY}))
    row = {"lyric": "low ropes", "phonemes": "l|oʊ|_|ɹ|oʊ|p|s|_", "token_ids": [10, 7, 5, 6, 7, 8, 9]}
    (tmp_path / "g2p_english.json").write_text(json.dumps({"rows": [row]}))
    (tmp_path / "song.lrc").write_text("[00:01.00]low\n[00:03.00]ropes\n")
    short, long = torch.zeros(2, 86, dtype=torch.int64)
    short[21:24] = long[21:24] = torch.tensor([10, 7, 2])
    long[64:69] = torch.tensor([6, 7, 8, 9, 2])
    tensors = {"base95.lrc_tokens": short, "full177.lrc_tokens": long, "other": torch.ones(1)}
    save_file(tensors, tmp_path / "lrc_placement_song.safetensors")
    return tmp_path


def test_measured_lyrics_agree_and_what_is_not_compared_is_named(measured):
    cases = golden_lyrics.lyrics(measured)
    assert [case.name for case in cases if not case.is_covered] == ["other"]
    assert sum(case.is_covered for case in cases) == 4
    assert all(case.is_within_tolerance for case in cases)


def test_one_wrong_token_fails(measured):
    rows = json.loads((measured / "g2p_english.json").read_text())
    rows["rows"][0]["token_ids"][3] += 1
    (measured / "g2p_english.json").write_text(json.dumps(rows))
    assert [case.error for case in golden_lyrics.lyrics(measured) if not case.is_within_tolerance] == [1.0]


def test_a_placement_one_frame_off_fails(measured):
    (measured / "song.lrc").write_text("[00:01.05]low\n[00:03.00]ropes\n")
    failed = [case.name for case in golden_lyrics.lyrics(measured) if not case.is_within_tolerance]
    assert failed == ["base95.lrc_tokens", "full177.lrc_tokens"]


def test_a_folder_without_measurements_is_refused(measured):
    (measured / "song.lrc").unlink()
    with pytest.raises(DataError, match=r"expected one \*\.lrc"):
        golden_lyrics.lyrics(measured)
