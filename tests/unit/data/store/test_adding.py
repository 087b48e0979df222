"""Adding to a store: every kind of folder, nothing twice, nothing half, nothing that was forgotten."""

import json

import pytest
from support.preference_sets import battle, tone, write_csv, write_music_arena, write_musicprefs, write_tone
from support.stores import add, study_opinion, study_vote, write_songs, write_study

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.songs import SONGS, SongRow
from diffdpo.data.store.folder import open_store
from diffdpo.data.votes import read_votes
from diffdpo.errors import DataError


def contents(store):
    return store.songs(), store.votes(), store.opinions(), store.provenance()


def test_samples_are_added_once(tmp_path):
    store, summary = add(tmp_path / "store", write_songs(tmp_path / "samples"), license="CC0-1.0")
    assert summary.counts["song"] == (4, 0)
    before = contents(store)
    assert add(tmp_path / "store", tmp_path / "samples", license="CC0-1.0")[1].counts["song"] == (0, 4)
    assert contents(store) == before
    song = store.songs()[0]
    assert (song.license, song.system, song.source) == ("CC0-1.0", "tiny", "samples")
    assert {row.prompt for row in store.songs()} == {"prompt 0", "prompt 1"}
    assert audio.file_sha256(store.path(song)) == song.sha256
    assert song.duration_s == pytest.approx(0.5)
    assert not (store.folder / "audio").exists(), "no copy unless one is wanted"


def test_prepared_songs_and_recordings(tmp_path):
    write_tone(tmp_path / "music" / "a.wav", 200)
    (tmp_path / "music" / "a.json").write_text(json.dumps({"caption": "slow jazz", "license": "CC-BY-4.0"}))
    write_tone(tmp_path / "music" / "b.wav", 250)
    rows = [
        SongRow(
            id="a",
            audio=str(tmp_path / "music/a.wav"),
            text="jazz",
            license="CC-BY-SA-4.0",
            attribution="ann",
        ),
        SongRow(id="x", error="damaged"),
    ]
    tables.append(tmp_path / "prepared", SONGS, rows)
    store, summary = add(tmp_path / "store", tmp_path / "prepared")
    assert summary.counts["song"] == (1, 0)
    store, summary = add(tmp_path / "store", tmp_path / "music", copy=True)
    assert summary.counts["song"] == (1, 1), "the same sound is the same song"
    songs = {row.song_id: row for row in store.songs()}
    assert (songs["a"].license, songs["a"].attribution, songs["a"].prompt) == ("CC-BY-SA-4.0", "ann", "jazz")
    assert all(row.file.startswith("audio/") and store.path(row).is_file() for row in store.songs())
    origins = {(row.via, row.origin) for row in store.provenance()}
    assert origins == {("prepared", "../prepared"), ("audio", "../music")}


def test_votes_of_a_study_keep_their_songs(tmp_path):
    write_songs(tmp_path / "samples")
    opinion = study_opinion()
    write_study(tmp_path / "listen", [study_vote(0), study_vote(1)], [opinion])
    store, summary = add(tmp_path / "deep" / "store", tmp_path / "listen", scope="share")
    assert summary.counts == {"song": (3, 0), "vote": (2, 0), "opinion": (1, 0)}
    vote = read_votes(store.folder)[0]
    assert vote.samples_a == "../../samples", "relative to the store"
    assert vote.sha256_a == audio.file_sha256(tmp_path / "samples/audio/p0.000.flac")
    assert {row.sha256 for row in store.songs()} == {vote.sha256_a, vote.sha256_b, store.opinions()[0].sha256}
    assert store.consent_scopes() == {"3f2a/en": "share"}
    assert add(store.folder, tmp_path / "listen")[1].counts["vote"] == (0, 2)


def test_imports_bring_their_sounds_and_licenses(tmp_path):
    folder = write_music_arena(tmp_path / "arena", [battle(0, "A"), battle(1, "TIE", withheld=True)])
    store, summary = add(tmp_path / "store", folder, layout="music-arena")
    assert summary.counts["song"] == (3, 0)
    assert summary.counts["vote"] == (2, 0)
    votes = {row.vote_id: row for row in store.votes()}
    assert (store.folder / votes["0000-0"].song_a).is_file()
    assert votes["0000-1"].sha256_a == ""
    assert votes["0000-1"].song_a == "0000-1/a"
    assert {row.license for row in store.songs()} == {"CC-BY-4.0"}
    assert all("Music Arena" in row.attribution for row in store.songs())
    row = {"audio_a": "a.wav", "audio_b": "b.wav", "musicality": "a_wins", "fidelity": "a_wins"}
    store, _ = add(tmp_path / "store", write_musicprefs(tmp_path / "prefs", [row]), layout="musicprefs")
    song = next(song for song in store.songs() if song.song_id == "a.wav")
    assert store.path(song).read_bytes() == tone(303), "out of the Parquet file"
    assert song.license == "unknown"
    assert {row.source for row in store.votes()} == {"music-arena", "musicprefs"}


def test_nothing_is_added_where_a_part_does_not_fit(tmp_path):
    folder = write_music_arena(tmp_path / "arena", [battle(0, "A"), battle(1, "B")])
    (folder / "audio_files/x/0000-1-b.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"0000-1-b.wav: no sound that can be decoded"):
        add(tmp_path / "store", folder, layout="music-arena", copy=True)
    store = open_store(tmp_path / "store")
    assert contents(store) == ([], [], [], [])
    assert {path.name for path in store.folder.iterdir()} == {"store.json"}
    write_csv(folder / "own.csv", [{"file": "nowhere.wav", "thumb": "up"}])
    with pytest.raises(DataError, match=r"own.csv:2: file 'nowhere.wav' is not there"):
        add(tmp_path / "store", folder / "own.csv", layout="opinions", license="CC0-1.0")


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no store"):
        open_store(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="holds other files"):
        open_store(tmp_path, create=True)
    with pytest.raises(DataError, match="no such file or folder"):
        add(tmp_path / "store", tmp_path / "nowhere")
