"""The page of a samples folder: what it shows, and that it costs nothing to write again."""

import json

import numpy as np
import pytest

from diffdpo import audio
from diffdpo.data.samples import SampleRow, Samples
from diffdpo.report.gallery import MAX_SONGS, picture, reduce_columns, write_gallery
from diffdpo.types import Clip


def tone(seconds, hertz):
    wave = 0.2 * np.sin(2 * np.pi * hertz * np.arange(int(44100 * seconds)) / 44100)
    return Clip(samples=np.stack([wave, wave]).astype(np.float32), sample_rate=44100)


def row(name, **more):
    fields = {
        "seed": 3, "duration_s": 1.0, "model": '{"name": "tiny"}', "sampling": '{"steps": 8, "guidance": 3.0}',
        "sha256": "x", **more,
    }  # fmt: skip
    return SampleRow(sample_id=name, prompt_id=name.split(".")[0], **fields)


@pytest.fixture
def samples(tmp_path):
    lines = [{"id": "a", "text": "rock", "negative_text": "noise"}, {"id": "b", "text": "metal"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("a.000", "a.001", "b.000"):
        audio.write(tmp_path / "audio" / f"{name}.flac", tone(1.0, 440))
    return Samples(tmp_path)


def test_songs_stand_under_their_prompts_and_failures_below(samples):
    rows = [row("a.000"), row("a.001"), row("b.000"), row("b.001", error="style.flac: <cannot> decode")]
    page = write_gallery(samples, rows, n_missing=2).read_text()
    assert page.count("<section aria-label") == 2
    assert (
        page.index("rock")
        < page.index("a.000")
        < page.index("a.001")
        < page.index("metal")
        < page.index("b.000")
    )
    assert "not noise" in page
    assert "style.flac: &lt;cannot&gt; decode" in page
    assert "2 songs are still to be made" in page
    assert "http" not in page.replace("http-equiv", "")
    for label, value in (("songs", "3"), ("music", "0:03"), ("steps", "8"), ("seed", "3")):
        assert f"<dt>{label}</dt><dd>{value}</dd>" in page


def test_what_was_written_is_left_alone(samples):
    rows = [row("a.000"), row("b.000")]
    write_gallery(samples, rows)
    files = {path: path.stat().st_mtime_ns for path in samples.folder.rglob("*") if path.is_file()}
    write_gallery(samples, rows)
    assert files == {path: path.stat().st_mtime_ns for path in samples.folder.rglob("*") if path.is_file()}


def test_a_page_shows_the_first_songs_and_says_so(samples):
    rows = [row(f"a.{k:03d}", sha256="") for k in range(MAX_SONGS + 5)]
    page = write_gallery(samples, rows).read_text()
    assert page.count("<figure") == MAX_SONGS
    assert f"The first {MAX_SONGS} of {MAX_SONGS + 5} songs" in page


def test_a_long_song_is_drawn_in_blocks_without_losing_a_moment(tmp_path):
    spectrum = np.full((4, 1000), -60.0)
    spectrum[2, 777] = 0.0
    narrow = reduce_columns(spectrum, 10)
    assert narrow.shape == (4, 10)
    assert narrow[2].argmax() == 7
    assert narrow[2, 7] == pytest.approx(10 * np.log10((1 + 99e-6) / 100))
    assert np.allclose(np.delete(narrow[2], 7), -60.0)
    audio.write(tmp_path / "long.flac", tone(50.0, 440))
    assert picture(tmp_path / "long.flac")[:8] == b"\x89PNG\r\n\x1a\n"
