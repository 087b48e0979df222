"""`diffdpo reference`: anybody's songs to the percentiles that a utility is aimed at."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffdpo import audio
from diffdpo.cli import app
from diffdpo.mining import Saturating, read_reference
from diffdpo.mining.reference import ALL_STYLES, PERCENTILES
from diffdpo.models.tiny import Tiny
from diffdpo.scorers import SCORERS
from diffdpo.scorers.engine import score_clips

SONG = Path(__file__).parents[2] / "data" / "galactic_temple.ogg"
WINDOWS = 20


def reference(*words, code=0):
    result = CliRunner().invoke(app, ["reference", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def songs(tmp_path):
    shutil.copy(SONG, tmp_path / "temple.ogg")
    (tmp_path / "noise.ogg").write_text("no sound")
    lines = [
        {"id": "temple", "audio": "temple.ogg", "text": "Ambient, science fiction", "split": "train"},
        {"id": "noise", "audio": "noise.ogg", "split": "train"},
        {"id": "held-out", "audio": "temple.ogg", "text": "rock", "split": "test"},
    ]
    path = tmp_path / "songs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.slow
def test_windows_of_songs_go_through_the_codec_and_become_percentiles(songs, tmp_path):
    said = reference(songs, tmp_path / "r.json", "--scorers=production", f"--windows={WINDOWS}", "--seconds=1",
                     "--split=train")  # fmt: skip
    assert "noise.ogg: left out" in said
    assert "science fiction: 20 windows" in said
    table = read_reference(tmp_path / "r.json")
    assert set(table.styles) == {ALL_STYLES, "ambient", "science fiction"}
    assert table.styles["ambient"] == table.styles[ALL_STYLES]
    model, length = Tiny().load(), audio.seconds_of(SONG)
    starts = [round(place * length, 2) for place in np.linspace(0.2, 0.7, WINDOWS)]
    clips = [audio.read(SONG, start_s=start, seconds=1.0) for start in starts]
    decoded = [model.decode(model.encode(audio.normalise(clip, -16.0))) for clip in clips]
    values = [
        row.values["production.balance"] for row in score_clips(decoded, {"p": SCORERS["production"]()})
    ]
    expected = np.percentile(values, PERCENTILES).tolist()
    assert table.styles[ALL_STYLES].axes["production.balance"] == pytest.approx(expected)
    Saturating(reference=str(tmp_path / "r.json"), style="ambient").check(["production.balance"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["out.txt"], "must end in .json"),
        (["r.json", "--scorers=notes"], "'notes' is a judge"),
        (["r.json", "--scorers=harmonie"], "Did you mean 'harmony'"),
        (["r.json", "--windows=0"], "--windows must be at least 1"),
        (["r.json", "--split=valid"], "no songs of the split 'valid'"),
        (["r.json", "--model=tiny", "--arg=bundle"], "not of the form key=value"),
        (["r.json", "--scorers=production", "--windows=1", "--seconds=1"], "needs 20 windows"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_write_nothing(songs, tmp_path, words, says):
    assert says in reference(songs, tmp_path / words[0], *words[1:], code=2)
    assert not (tmp_path / words[0]).exists()
