"""`diffdpo store` from the command line: add, search, export, forget, each with its answer and its mistakes."""

import json

import pytest
from support.launch import verb
from support.preference_sets import battle, write_music_arena
from support.stores import study_vote, write_run, write_songs, write_study
from typer.testing import CliRunner

from diffdpo import audio
from diffdpo.cli import app
from diffdpo.data.store.folder import open_store
from diffdpo.recipes.store_search import check_store_search, search_store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with samples, a study and a store of both."""
    monkeypatch.chdir(tmp_path)
    write_songs(tmp_path / "samples")
    write_study(tmp_path / "listen", [study_vote(number) for number in range(4)])
    text = verb(
        "store", "add", "store", "samples", "listen", "--license", "CC-BY-4.0", "--consent-scope", "share"
    )
    assert "4 songs added" in text
    assert "4 votes added" in text
    return tmp_path


def answer(*words: str) -> str:
    """What a command of the store prints to its output, without its progress."""
    return CliRunner().invoke(app, ["store", *words], catch_exceptions=False).stdout


def test_a_public_data_set_is_added_by_its_format(folder):
    write_music_arena(folder / "arena", [battle(0, "A"), battle(1, "B")])
    text = verb("store", "add", "store", "arena", "--format", "music-arena", "--copy")
    assert "2 votes added" in text
    odd = verb("store", "add", "odd", "arena", "--format", "music-arena", "--license", "CCBY")
    assert "license 'CCBY': none that is known" in odd
    assert "2 votes added" not in verb("store", "add", "store", "arena", "--format", "music-arena", "--copy")
    assert "Did you mean 'music-arena'" in verb(
        "store", "add", "new", "arena", "--format", "music-area", code=2
    )
    assert not (folder / "new").exists()
    (folder / "arena/battle_data/x/0000-1.json").write_text(json.dumps(battle(1, "?")))
    error = verb("store", "add", "store", "arena", "--format", "music-arena", code=2)
    assert "0000-1.json: preference must be one of" in error


def test_similar_songs_as_a_table_and_as_json(folder):
    table = answer("search", "store", "p0.000", "--by", "harmony", "--count", "2")
    assert table.splitlines()[0].split() == ["distance", "song", "source", "license", "prompt"]
    assert len(table.splitlines()) == 3
    assert "p0.000" not in table.split("\n", 1)[1], "a song is not similar to itself"
    rows = json.loads(answer("search", "store", "samples/audio/p0.000.flac", "--json"))
    assert rows[0]["song_id"] == "p0.000"
    assert rows[0]["distance"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["license"] == "CC-BY-4.0"
    graph = CliRunner().invoke(
        app, ["store", "search", "store", "samples/audio/p0.000.flac", "--json", "--index"]
    )
    assert json.loads(graph.stdout) == rows
    assert "p0.000" in verb("store", "search", "store", "--text", "slow and smooth")
    assert verb("store", "search", "store", "p0.000", "--license", "MIT").strip() == "no song"
    sha256 = audio.file_sha256(folder / "samples/audio/p1.001.flac")
    assert answer("search", "store", sha256[:12]) == answer("search", "store", "p1.001")


def test_songs_that_may_not_be_used_commercially_are_left_out(folder):
    verb("store", "add", "store", "samples", "--license", "CC-BY-NC-4.0")
    write_songs(folder / "more", count=6)
    verb("store", "add", "store", "more", "--license", "CC-BY-NC-4.0")
    search = {"store": folder / "store", "query": "p0.000", "reader": "rhythm"}
    sources = {hit.song.license for hit in search_store(check_store_search(**search, commercial=True))}
    assert sources == {"CC-BY-4.0"}, "what was added first keeps its license"
    assert len(search_store(check_store_search(**search))) == 5


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("search", "store"), "name a song, or words with --text"),
        (("search", "store", "p0.000", "--count", "0"), "--count must be at least 1"),
        (("search", "store", "--text", "slow", "--by", "rhythm"), "words have a style and no rhythm"),
        (("search", "store", "p0.00"), "no song 'p0.00', and no such file. Did you mean 'p0.00"),
        (("search", "nowhere", "p0.000"), "is no store"),
        (("add", "store", "nowhere"), "no such file or folder"),
        (("export", "store", "samples"), "exists"),
        (("forget", "store"), "name what is to be forgotten"),
        (("forget", "store", "--rater", "rater0", "--vote", "t0"), "name one of"),
        (("forget", "store", "--rater", "nobody"), "holds no rater 'nobody'"),
        (("forget", "store", "--rater", "rater0", "--runs", "nowhere"), "no such folder of runs"),
    ],
)
def test_mistakes_are_one_line(folder, words, complaint):
    assert complaint in verb("store", *words, code=2)


def test_an_export_says_what_stays(folder):
    study = write_study(folder / "second", [study_vote(9, source="second", consent="77/en")])
    verb("store", "add", "store", study)
    text = verb("store", "export", "store", "out", "--name", "tones")
    assert "1 left out: votes: consent 77/en is of no stated scope" in text
    assert "# tones" in (folder / "out/README.md").read_text()


def test_forgetting_names_what_must_be_made_again(folder):
    write_run(folder / "runs/pairs", "votes: store\n")
    write_run(folder / "runs/adapter", "data: {pairs: runs/pairs}\n")
    (folder / "runs/adapter/checkpoints").mkdir()
    text = verb("store", "forget", "store", "--rater", "rater0")
    assert "forgotten: 2 votes" in text
    assert "run" in text
    assert "model" in text
    assert text.index("runs/pairs") < text.index("runs/adapter")
    assert "train it again" in text
    assert "forgotten before" in verb("store", "forget", "store", "--rater", "rater0", "--source", "study")


def test_what_a_study_deleted_is_forgotten_when_it_is_added_again(folder):
    write_run(folder / "runs/pairs", "votes: store\n")
    write_study(folder / "listen", [study_vote(number) for number in (1, 3)])
    text = verb("store", "add", "store", "listen")
    assert "forgotten: 2 votes" in text
    assert "runs/pairs" in text
    store = open_store(folder / "store")
    assert {row.vote_id for row in store.votes()} == {"t1", "t3"}
    write_study(folder / "listen", [study_vote(number) for number in range(4)])
    assert "2 kept out" in verb("store", "add", "store", "listen"), "the tombstones hold"
