"""Forgetting: the cascade in the store, tombstones without content, and the names of what contained it."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.preference_sets import battle, write_music_arena
from support.stores import add, study_opinion, study_vote, write_run, write_songs, write_study

from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.store.folder import STORE_FEATURES, TOMBSTONES, StoreFeatureRow, open_store
from diffdpo.data.store.forgetting import check_selection, forget
from diffdpo.data.votes import VOTES
from diffdpo.errors import ConfigError, DataError
from diffdpo.runs import finish


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a study of two raters and three battles of a public data set; every song has features."""
    monkeypatch.chdir(tmp_path)
    write_songs(tmp_path / "samples")
    opinion = study_opinion()
    write_study(tmp_path / "listen", [study_vote(number) for number in range(6)], [opinion])
    add(tmp_path / "store", tmp_path / "listen")
    arena = write_music_arena(tmp_path / "arena", [battle(number, "A") for number in range(3)])
    store, _ = add(tmp_path / "store", arena, layout="music-arena", copy=True)
    rows = [
        StoreFeatureRow(sha256=song.sha256, reader="x", fingerprint="1", values=(1.0,))
        for song in store.songs()
    ]
    tables.append(store.folder, STORE_FEATURES, rows)
    return store


def text_of(folder):
    """All bytes of the tables of a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.parquet")) if path.is_file())


def test_a_rater_leaves_with_votes_and_opinions(store, tmp_path):
    report = forget(store, check_selection(rater="rater0"), [])
    assert (report.votes, report.opinions, report.songs) == (3, 1, 0)
    assert {row.rater for row in store.votes() if row.source == "study"} == {"rater1"}
    assert store.opinions() == []
    assert b"rater0" not in text_of(store.folder), "no table holds the name, tombstones least of all"
    assert {row.id for row in store.provenance() if row.kind == "vote"} == {
        f"{row.source}/{row.vote_id}" for row in store.votes()
    }
    _, summary = add(store.folder, tmp_path / "listen")
    assert summary.kept_out == 4
    assert {row.rater for row in store.votes() if row.source == "study"} == {"rater1"}


def test_a_song_leaves_with_all_about_it_and_its_copy(store, tmp_path):
    song = next(row for row in store.songs() if row.source == "music-arena")
    path = store.path(song)
    assert path.is_file()
    report = forget(store, check_selection(song=song.sha256), [])
    assert (report.votes, report.songs, report.features) == (1, 1, 1)
    assert not path.exists()
    assert song.sha256.encode() not in text_of(store.folder)
    _, summary = add(store.folder, tmp_path / "arena", layout="music-arena", copy=True)
    assert summary.kept_out == 2, "the song and its vote"
    assert not path.exists()


def test_a_source_and_a_vote(store, tmp_path):
    forget(store, check_selection(vote="t0"), [])
    assert "t0" not in {row.vote_id for row in store.votes()}
    report = forget(store, check_selection(source="music-arena"), [])
    assert (report.votes, report.songs) == (3, 6)
    assert {row.source for row in store.votes()} == {"study"}
    assert {row.source for row in store.songs()} == {"study"}
    assert add(store.folder, tmp_path / "arena", layout="music-arena")[1].kept_out == 3 + 6
    again = forget(store, check_selection(source="music-arena"), [])
    assert again.earlier
    with pytest.raises(DataError, match="holds no rater 'nobody'"):
        forget(store, check_selection(rater="nobody"), [])


def test_a_tombstone_has_no_content(store):
    forget(store, check_selection(rater="rater1"), [])
    row = tables.read_rows(store.folder, TOMBSTONES)[0]
    assert (row.kind, row.rows) == ("rater", 3)
    assert row.digest != hashlib.sha256(b"rater1").hexdigest()
    assert "rater1" not in json.dumps([row.kind, row.digest, *row.uses])


def test_a_name_in_two_sources_needs_the_source(store, tmp_path):
    write_study(tmp_path / "other", [study_vote(0, source="second", rater="rater0")])
    add(store.folder, tmp_path / "other")
    with pytest.raises(DataError, match="is in second, study; add --source"):
        forget(store, check_selection(rater="rater0"), [])
    forget(store, check_selection(rater="rater0", source="second"), [])
    assert "rater0" in {row.rater for row in store.votes()}


@pytest.mark.parametrize(
    "values",
    [{}, {"rater": "a", "song": "b"}, {"song": "b", "source": "c"}],
    ids=["none", "two", "song in a source"],
)
def test_a_selection_that_is_none(values):
    with pytest.raises(ConfigError):
        check_selection(**values)


def test_votes_deleted_in_their_study_are_seen_as_such(store, tmp_path):
    """The study deletes a rater's rows; when it is added again, the store knows which are gone."""
    write_study(tmp_path / "listen", [study_vote(number) for number in (1, 3, 5)])
    _, summary = add(store.folder, tmp_path / "listen")
    assert {getattr(row, "vote_id", "o") for row in summary.deletions} == {"t0", "t2", "t4", "o"}


def test_every_table_and_model_that_contained_a_vote_is_named(store, tmp_path):
    """Votes to pairs to adapter to the next round's songs; and votes to a reward model that lists what it used."""
    runs = tmp_path / "runs"
    write_run(runs / "pairs", "votes: store\nout: runs/pairs\n")
    tables.append(
        runs / "pairs",
        PAIRS,
        [PairRow(prompt_id="p0", samples="../../samples", winner="p0.000", loser="p0.002")],
    )
    write_run(runs / "adapter", "data: {pairs: runs/pairs}\n", steps=1)
    (runs / "adapter/checkpoints/step-1").mkdir(parents=True)
    write_run(runs / "next", "model: {name: tiny, args: {adapter: runs/adapter/checkpoints/step-1@0.5}}\n")
    finish(runs / "exported", source="runs/adapter/checkpoints/step-1", layout="diffusers")
    save_file({"w": np.zeros(1)}, runs / "exported/pytorch_lora_weights.safetensors")
    write_run(runs / "reward", "votes: [store]\n")
    short = [hashlib.sha256(name.encode()).hexdigest()[:16] for name in ("t0", "t1")]
    save_file(
        {"w": np.zeros(1)},
        runs / "reward/reward.safetensors",
        metadata={"card": json.dumps({"votes": {"study": short}})},
    )
    write_run(runs / "reward2", "votes: [store]\n")
    (runs / "reward2/reward.json").write_text(json.dumps({"votes": {"study": short[1:]}}))
    write_run(runs / "unrelated", "data: {songs: somewhere}\n", steps=3)
    tables.append(runs / "copy", VOTES, [study_vote(0), study_vote(1)])
    report = forget(store, check_selection(vote="t0"), [runs, tmp_path / "listen"])
    uses = {use.folder.name: use for use in report.uses}
    assert set(uses) == {"listen", "pairs", "adapter", "exported", "next", "reward", "copy"}
    assert uses["copy"].rows == {"votes.parquet": 1}
    assert uses["listen"].rows == {"votes.parquet": 1}
    assert uses["reward"].rows == {"its card": 1}
    assert {name for name, use in uses.items() if use.is_model} == {"adapter", "exported", "reward"}
    names = [use.folder.name for use in report.uses]
    assert names.index("pairs") < names.index("adapter") < names.index("next")
    text = "\n".join(report.lines())
    assert "train it again" in text
    assert "3 of them models" in text
    again = forget(store, check_selection(vote="t0", source="study"), [runs])
    assert [line for line in again.lines() if "adapter" in line], "the tombstone remembers what was named"


def test_songs_are_followed_into_pairs_scores_and_samples(store, tmp_path):
    runs = tmp_path / "runs"
    pair = PairRow(prompt_id="p0", samples="../../samples", winner="p0.000", loser="p0.002")
    other = PairRow(prompt_id="p1", samples="../../samples", winner="p1.001", loser="p1.003")
    tables.append(runs / "pairs", PAIRS, [pair, other])
    song = next(row for row in store.songs() if row.song_id == "p0.002")
    report = forget(store, check_selection(song=song.sha256), [tmp_path])
    uses = {use.folder.name: use for use in report.uses}
    assert uses["samples"].rows == {"samples.parquet": 1}
    assert uses["pairs"].rows == {"pairs.parquet": 1}
    assert open_store(store.folder).tombstones().has("song", song.sha256)
