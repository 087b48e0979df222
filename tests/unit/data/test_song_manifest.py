"""Songs of folders and manifests: their ids, their files, and what is said about recordings that are left out."""

import json
import os

import numpy as np
import pytest
import soundfile

from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow, Samples, open_samples, relative_folder
from diffdpo.data.song_manifest import read_songs
from diffdpo.data.songs import SONGS, SongRow, song_latents
from diffdpo.errors import DataError
from diffdpo.recipes.prepare import PrepareRun, run
from diffdpo.registry import Choice

TONE = 0.3 * np.sin(2 * np.pi * 220 * np.arange(22050) / 44100)


def write_song(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = path.with_name("x.flac")
    soundfile.write(sound, TONE, 44100)
    sound.rename(path)
    return path


def manifest(tmp_path, *rows):
    path = tmp_path / "songs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", "..", "a\nb"])
def test_ids_of_a_manifest_that_would_leave_the_run_are_refused(tmp_path, name):
    path = manifest(tmp_path, {"id": "fine", "audio": "x.wav"}, {"id": name, "audio": "x.wav"})
    with pytest.raises(DataError, match=r"songs\.jsonl:2: the id .* names files and may not"):
        read_songs(path, 0.0)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"audio": "x.wav"}, "a song needs 'id'"),
        ({"id": "a"}, "a song needs 'audio'"),
        ({"id": ["a"], "audio": "x.wav"}, "id must be a string"),
        ({"id": "a", "audio": {"path": "x.wav"}}, "audio must be a string"),
        ({"id": "a", "audio": "x.wav", "text": True}, "text must be a string"),
        ({"id": "a", "audio": "x.wav", "lyrics": "none.LRC"}, "lyrics .*none.LRC: no such file"),
        (
            {"id": "a", "audio": "x.wav", "lyrics": "words.srt"},
            "lyrics .*words.srt: a file of this kind",
        ),
        ({"id": "a", "audio": "x.wav", "text": "\udce9"}, "text holds a part of a character"),
    ],
)
def test_every_mistake_of_a_manifest_names_its_line(tmp_path, row, says):
    with pytest.raises(DataError, match=rf"songs\.jsonl:1: {says}"):
        read_songs(manifest(tmp_path, row), 0.0)


def test_numbers_are_ids_and_lyrics_may_be_a_file(tmp_path):
    (tmp_path / "SONG.LRC").write_text("\ufeff[00:01.00]la", encoding="utf-8")
    (song,) = read_songs(manifest(tmp_path, {"id": 7, "audio": "x.wav", "lyrics": "SONG.LRC"}), 0.0)
    assert (song.id, song.audio, song.lyrics) == ("7", tmp_path / "x.wav", "[00:01.00]la")


def test_two_recordings_of_one_song_are_one_and_it_is_said_which(tmp_path):
    for name in ("song.flac", "song.wav", "song.MP3", "sub/song.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = []
    songs = read_songs(tmp_path, 0.0, lines.append)
    assert [(song.id, song.audio.name) for song in songs] == [("song", "song.wav"), ("sub-song", "song.flac")]
    assert len(lines) == 2
    assert all(line.endswith("left out; song.wav is the same song") for line in lines)


def test_files_whose_paths_read_alike_have_ids_that_differ(tmp_path):
    for name in ("A/B-C.flac", "A-B/C.flac", "other.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = {song.audio.name: song.id for song in read_songs(tmp_path, 0.0)}
    assert len(set(before.values())) == 3
    assert before["other.flac"] == "other"
    (tmp_path / "zzz.flac").touch()
    after = {song.audio.name: song.id for song in read_songs(tmp_path, 0.0)}
    assert after == before | {"zzz.flac": "zzz"}


def test_songs_of_long_and_undecodable_names_are_prepared(tmp_path, bundle):
    write_song(tmp_path / "songs" / ("歌手" * 5) / ("专辑" * 5) / ("曲" * 66 + ".flac"))
    write_song(tmp_path / "songs" / os.fsdecode(b"caf\xe9.flac"))
    cfg = PrepareRun(
        out=str(tmp_path / "out"),
        songs=str(tmp_path / "songs"),
        model=Choice("tiny", {"bundle": str(bundle)}),
    )
    rows = tables.read_rows(run(cfg), SONGS)
    assert [row.error for row in rows] == ["", ""]
    assert all(song_latents(tmp_path / "out", row.id).is_file() for row in rows)
    assert any("caf\\udce9.flac" in row.audio for row in rows)


def test_an_id_of_any_length_names_files_that_can_be_written(tmp_path):
    samples = Samples(tmp_path)
    name = "曲" * 85 + ".000"
    for path in (samples.latents(name), samples.audio(name), samples.plan(name), samples.preview(name)):
        path.parent.mkdir(exist_ok=True)
        path.with_name(f".{path.name}.4194304.partial").touch()
        assert path.parent.parent == tmp_path


def test_a_table_of_samples_from_elsewhere_cannot_name_files_outside(tmp_path):
    tables.append(tmp_path, SAMPLES, [SampleRow(sample_id="../../escaped.000", prompt_id="a")])
    with pytest.raises(DataError, match="names files and may not contain a path separator"):
        open_samples(tmp_path).rows()
    tables.append(tmp_path, SONGS, [SongRow(id="../../escaped")])
    assert song_latents(tmp_path, "../../escaped").parent == tmp_path / "latents"


def test_paths_between_folders_hold_behind_a_link(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pairs").symlink_to(tmp_path / "disk" / "deep")
    (tmp_path / "work" / "samples").mkdir()
    for out, samples in (("work/pairs", "work/samples"), ("work/samples", "work/pairs")):
        relative = relative_folder(tmp_path / samples, tmp_path / out)
        assert (tmp_path / out / relative).samefile(tmp_path / samples)
