"""Exports of a store: loaded by `datasets` offline, with a card that is filled, and only what may leave."""

import os
import socket

import pytest
from huggingface_hub import DatasetCard
from support.preference_sets import (
    battle,
    cmi_pair,
    tone,
    write_cmi_pref,
    write_music_arena,
    write_musicprefs,
)
from support.stores import add, study_opinion, study_vote, write_songs, write_study

from diffdpo.data import tables
from diffdpo.data.lineage import data_terms
from diffdpo.data.store.exporting import StoreExportOptions, export_store, split_of
from diffdpo.data.store.folder import CONSENTS, ConsentRow
from diffdpo.errors import ConfigError, DataError

PREFS = {"audio_a": "a.wav", "audio_b": "b.wav", "musicality": "a_wins", "fidelity": "a_wins"}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and caches of `datasets` in a folder of the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    return str(tmp_path / "cache")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Votes of a study (shareable consent), of Music Arena, CMI-Pref and MusicPrefs; exports do not change it."""
    tmp_path = tmp_path_factory.mktemp("export")
    write_songs(tmp_path / "samples")
    votes = [
        study_vote(0, comment="secret words", rater_group={"language": "de"}),
        study_vote(1, consent="99/en"),
    ]
    write_study(tmp_path / "listen", votes, [study_opinion(spans=((0.5, 1.5),))])
    add(tmp_path / "store", tmp_path / "listen")
    arena = write_music_arena(tmp_path / "arena", [battle(number, "A") for number in range(30)])
    add(tmp_path / "store", arena, layout="music-arena")
    add(tmp_path / "store", write_cmi_pref(tmp_path / "cmi", [cmi_pair(1, "model_a", "")]), layout="cmi-pref")
    store, _ = add(tmp_path / "store", write_musicprefs(tmp_path / "mp", [PREFS]), layout="musicprefs")
    rows = [ConsentRow(consent="3f2a/en", scope="share"), ConsentRow(consent="99/en", scope="train")]
    tables.replace(store.folder, CONSENTS, rows)
    return store


def test_an_export_loads_offline_with_a_filled_card(store, tmp_path, offline):
    from datasets import load_dataset

    export = export_store(store, tmp_path / "out", StoreExportOptions(name="songs"))
    votes = load_dataset(str(tmp_path / "out"), "votes", cache_dir=offline)
    assert {name: part.num_rows for name, part in votes.items()} == export.sizes["votes"]
    rows = [row for part in votes.values() for row in part]
    assert len(rows) == 1 + 30 + 1
    opinions = load_dataset(str(tmp_path / "out"), "opinions", cache_dir=offline)
    opinion = next(iter(opinions.values()))[0]
    assert (opinion["value"], opinion["spans"]) == (1.0, [[0.5, 1.5]])
    songs = load_dataset(str(tmp_path / "out"), "songs", cache_dir=offline)
    hashes = {row["sha256"] for part in songs.values() for row in part}
    assert {row["sha256_a"] for row in rows} <= hashes
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert {config["config_name"] for config in card.data.to_dict()["configs"]} == {
        "votes",
        "opinions",
        "songs",
    }
    for text in ("CC-BY-NC-SA-4.0 (cmi-pref)", "`3f2a/en`", "| votes |", "`answer`", "no license is stated"):
        assert text in card.content
    assert "99/en" not in card.content.split("## Left out")[0]


def test_what_may_not_leave_stays_and_is_said(store, tmp_path):
    export = export_store(store, tmp_path / "out", StoreExportOptions(commercial=True))
    assert export.skips == {
        "votes: no license is stated": 2,
        "songs: no license is stated": 2,
        "votes: CC-BY-NC-SA-4.0 forbids commercial use": 1,
        "songs: CC-BY-NC-SA-4.0 forbids commercial use": 2,
        "votes: consent 99/en is to train only": 1,
    }
    assert export.terms.names == ("CC-BY-4.0",)
    assert any("left out" in line for line in export.lines())
    assert data_terms([tmp_path / "out"]).names == ("CC-BY-4.0",)
    with pytest.raises(ConfigError, match="exists"):
        export_store(store, tmp_path / "out", StoreExportOptions())


def test_people_and_folders_are_not_named_unless_wanted(store, tmp_path):
    export_store(store, tmp_path / "out", StoreExportOptions())
    content = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.parquet")))
    for text in (
        b"rater0",
        b"listener0",
        b"secret words",
        b"language",
        str(store.folder.parent).encode(),
        b"../samples",
    ):
        assert text not in content
    export_store(store, tmp_path / "named", StoreExportOptions(raters=True))
    content = b"".join(path.read_bytes() for path in sorted((tmp_path / "named").rglob("*.parquet")))
    assert b"rater0" in content
    assert b"secret words" in content


def test_sounds_come_along_where_wanted(store, tmp_path, offline):
    from datasets import Audio, load_dataset

    export_store(store, tmp_path / "out", StoreExportOptions(audio=True))
    songs = load_dataset(str(tmp_path / "out"), "songs", cache_dir=offline)
    part = next(iter(songs.values()))
    assert isinstance(part.features["audio"], Audio)
    sounds = {
        row["song_id"]: row["audio"]["bytes"]
        for split in songs.values()
        for row in split.cast_column("audio", Audio(decode=False))
    }
    assert sounds["0000-0/a"] == tone(200)


def test_splits_follow_from_the_group(store, tmp_path):
    import pyarrow.parquet as pq

    export = export_store(store, tmp_path / "out", StoreExportOptions())
    groups: dict[str, set[str]] = {}
    for name in ("votes", "songs"):
        for split in export.sizes[name]:
            for group in pq.read_table(tmp_path / "out" / name / f"{split}.parquet")["group"].to_pylist():
                groups.setdefault(group, set()).add(split)
    assert max(map(len, groups.values())) == 1
    shares = [split_of(f"group {number}") for number in range(4000)]
    assert shares.count("test") / 4000 == pytest.approx(0.1, abs=0.02)
    assert shares.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)


def test_a_store_of_which_nothing_may_leave_is_refused(tmp_path):
    store, _ = add(tmp_path / "store", write_musicprefs(tmp_path / "mp", [PREFS]), layout="musicprefs")
    with pytest.raises(DataError, match=r"nothing may be passed on \(2 songs: no license"):
        export_store(store, tmp_path / "out", StoreExportOptions())
    assert not (tmp_path / "out").exists()
