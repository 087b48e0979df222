"""Importers of published preferences: what the published columns mean, and what is refused, with its place."""

import json
from collections import Counter

import pytest
from support.preference_sets import (
    answer_of_aime,
    battle,
    cmi_pair,
    rated_song,
    tone,
    write_aime,
    write_cmi_pref,
    write_csv,
    write_jsonl,
    write_music_arena,
    write_musicprefs,
    write_parquet,
    write_songeval,
    write_tone,
)

from diffdpo.data.importers import IMPORTERS, import_preferences
from diffdpo.data.importers.aime import AIME_COLUMNS
from diffdpo.data.importers.cmi_pref import CMI_PREF_COLUMNS
from diffdpo.data.importers.music_arena import MUSIC_ARENA_COLUMNS
from diffdpo.data.importers.records import EmbeddedSound, read_embedded
from diffdpo.data.importers.songeval import SONGEVAL_COLUMNS
from diffdpo.data.votes import VoteRow
from diffdpo.errors import ConfigError, DataError


def answers(rows: list[VoteRow]) -> list[str]:
    return [row.answer for row in rows]


def test_the_table_is_literal_and_open(tmp_path):
    assert {"music-arena", "musicprefs", "aime", "songeval", "cmi-pref", "trl", "opinions"} <= set(IMPORTERS)
    assert IMPORTERS.group == "diffdpo.importers"
    licenses = {name: IMPORTERS[name].license for name in IMPORTERS.entries}
    assert licenses["music-arena"] == licenses["aime"] == "CC-BY-4.0"
    assert licenses["songeval"] == licenses["cmi-pref"] == "CC-BY-NC-SA-4.0"
    assert licenses["musicprefs"] == "unknown"
    with pytest.raises(ConfigError, match="Did you mean 'aime'"):
        import_preferences("aimee", tmp_path)


def test_fixtures_have_exactly_the_published_columns():
    assert tuple(sorted(battle(0, "A"))) == tuple(sorted(MUSIC_ARENA_COLUMNS))
    assert tuple(answer_of_aime(0, 1)) == AIME_COLUMNS
    assert tuple(rated_song(0, [])) == SONGEVAL_COLUMNS
    assert tuple(cmi_pair(0, "", "")) == CMI_PREF_COLUMNS


def test_music_arena(tmp_path):
    rows = [battle(i, answer) for i, answer in enumerate(("A", "B", "TIE", "BOTH_BAD"))]
    rows += [battle(4, "A", withheld=True), battle(5, None)]
    imported = import_preferences("music-arena", write_music_arena(tmp_path, rows))
    votes = {row.vote_id: row for row in imported.votes}
    assert answers(imported.votes) == ["a", "b", "tie", "both_bad", "a"]
    first = votes["0000-0"]
    assert (first.source, first.license, first.rater) == ("music-arena", "CC-BY-4.0", "listener0")
    assert (first.system_a, first.system_b, first.prompt) == ("acestep", "musicgen-small", "jazz number 0")
    assert (first.heard_a_s, first.heard_b_s) == (6.5, 7.25)
    assert first.created_at == pytest.approx(1764738979.8, abs=0.1)
    assert first.song_a in imported.sounds
    assert votes["0000-4"].song_a not in imported.sounds, "withheld"
    assert votes["0000-4"].song_b in imported.sounds
    assert any("without a preference" in note for note in imported.notes)
    assert any("1 of 10 songs" in note for note in imported.notes)


def test_music_arena_as_parquet_without_the_sounds(tmp_path):
    file = write_parquet(tmp_path / "2025_12" / "train-0.parquet", [battle(i, "B") for i in range(3)])
    imported = import_preferences("music-arena", file)
    assert answers(imported.votes) == ["b"] * 3
    assert not imported.sounds
    assert any("6 of 6 songs" in note for note in imported.notes)


def test_musicprefs(tmp_path):
    rows = [
        {
            "audio_a": "clips/m1_0.wav",
            "audio_b": "clips/m2_0.wav",
            "musicality": "a_wins",
            "fidelity": "b_wins",
        },
        {"audio_a": "clips/m1_1.wav", "audio_b": "clips/m2_1.wav", "musicality": "both", "fidelity": ""},
        {
            "audio_a": "clips/m1_0.wav",
            "audio_b": "clips/m2_0.wav",
            "musicality": "a_wins",
            "fidelity": "a_wins",
        },
    ]
    imported = import_preferences("musicprefs", write_musicprefs(tmp_path, rows))
    assert [(row.axis, row.answer) for row in imported.votes] == [
        ("musicality", "a"), ("fidelity", "b"),
        ("musicality", "tie"), ("fidelity", "tie"),
        ("musicality", "a"), ("fidelity", "a"),
    ]  # fmt: skip
    assert len({row.vote_id for row in imported.votes}) == 6
    assert {row.license for row in imported.votes} == {"unknown"}
    assert imported.votes[0].prompt == "prompt of m1_0.wav"
    sound = imported.sounds["m1_1.wav"]
    assert isinstance(sound, EmbeddedSound)
    assert read_embedded(sound) == tone(313), "the clips are sorted by name"


def test_aime_meets_integers_with_zero_padded_names(tmp_path):
    rows = [answer_of_aime(0, 1), answer_of_aime(1, 2), answer_of_aime(1, 2)]
    imported = import_preferences("aime", write_aime(tmp_path, rows))
    first, second, _ = imported.votes
    assert (first.song_a, first.song_b) == ("04501", "00026")
    assert {first.song_a, first.song_b} <= set(imported.sounds)
    assert (first.begin_a_s, first.end_a_s, first.begin_b_s, first.end_b_s) == (53, 63, 0, 10)
    assert (first.axis, second.axis) == ("prompt", "quality")
    assert answers(imported.votes) == ["a", "b", "b"]
    assert len({row.vote_id for row in imported.votes}) == 3
    assert first.license == "CC-BY-4.0"


def test_songeval_gives_opinions_and_pairs_of_half_a_point(tmp_path):
    means = [1.0, 1.4, 1.6, 3.0]
    rows = [rated_song(i, [[mean] * 5, [mean + 0.2] * 5]) for i, mean in enumerate(means)]
    imported = import_preferences("songeval", write_songeval(tmp_path, rows))
    assert len(imported.opinions) == 4 * 2 * 5
    assert {row.scale for row in imported.opinions} == {"stars"}
    assert Counter(row.axis for row in imported.opinions)["clarity"] == 8
    better = {}
    for vote in imported.votes:
        songs = (vote.song_a, vote.song_b)
        winner, loser = songs if vote.answer == "a" else songs[::-1]
        better[winner, loser] = vote
    names = [f"mp3/{i}.wav" for i in range(4)]
    expected = {(names[i], names[j]) for i in range(4) for j in range(4) if means[i] - means[j] >= 0.5 - 1e-9}
    assert set(better) == expected, "all pairs of a set of four that differ enough"
    assert {row.group for row in imported.votes} == {row.group for row in imported.opinions}


def test_a_song_of_songeval_is_in_one_group_only(tmp_path):
    rows = [rated_song(i, [[1 + (i * 7 % 40) / 10] * 5]) for i in range(50)]
    imported = import_preferences("songeval", write_songeval(tmp_path, rows))
    groups: dict[str, set[str]] = {}
    for vote in imported.votes:
        for song in (vote.song_a, vote.song_b):
            groups.setdefault(song, set()).add(vote.group)
    assert max(map(len, groups.values())) == 1
    assert len({vote.group for vote in imported.votes}) > 3
    first = sum(vote.answer == "a" for vote in imported.votes) / len(imported.votes)
    assert 0.3 < first < 0.7, "neither side is preferred"


def test_cmi_pref(tmp_path):
    rows = [cmi_pair(1, "model_b", "model_a"), cmi_pair(2, "", "model_b")]
    imported = import_preferences("cmi-pref", write_cmi_pref(tmp_path, rows))
    assert [(row.axis, row.answer, row.confidence) for row in imported.votes] == [
        ("musicality", "b", 0.5), ("prompt", "a", 1.0), ("prompt", "b", 1.0),
    ]  # fmt: skip
    first = imported.votes[0]
    assert (first.rater, first.system_a, first.split, first.heard_a_s) == ("601", "songgen", "train", 12.5)
    assert first.license == "CC-BY-NC-SA-4.0"
    assert len(imported.sounds) == 4
    assert any("1 pairs without an answer on musicality" in note for note in imported.notes)


def test_trl_pairs_favour_no_side(tmp_path):
    rows = []
    for i in range(40):
        write_tone(tmp_path / "audio" / f"{i}w.wav", 200 + i)
        write_tone(tmp_path / "audio" / f"{i}l.wav", 300 + i)
        rows.append({"prompt": f"p{i}", "chosen": f"audio/{i}w.wav", "rejected": f"audio/{i}l.wav"})
    imported = import_preferences("trl", write_jsonl(tmp_path / "pairs.jsonl", rows), license_name="CC0-1.0")
    for vote in imported.votes:
        winner = vote.song_a if vote.answer == "a" else vote.song_b
        assert winner.endswith("w.wav")
    assert 10 < answers(imported.votes).count("a") < 30
    with pytest.raises(ConfigError, match="states no license"):
        import_preferences("trl", tmp_path / "pairs.jsonl")


def test_trl_pairs_with_sounds_inside(tmp_path):
    row = {
        "prompt": "p",
        "chosen": {"bytes": tone(200), "path": "x.wav"},
        "rejected": {"bytes": tone(300), "path": "x.wav"},
    }
    imported = import_preferences("trl", write_parquet(tmp_path / "t.parquet", [row]), license_name="CC0-1.0")
    vote = imported.votes[0]
    winner = vote.song_a if vote.answer == "a" else vote.song_b
    assert read_embedded(imported.sounds[winner]) == tone(200)


def test_own_opinions(tmp_path):
    write_tone(tmp_path / "a.wav", 200)
    file = write_csv(
        tmp_path / "opinions.csv",
        [
            {"file": "a.wav", "sha256": "", "rater": "ann", "thumb": "up", "stars": "", "comment": "yes"},
            {"file": "", "sha256": "f" * 64, "rater": "bob", "thumb": "", "stars": "2", "comment": ""},
        ],
    )
    imported = import_preferences("opinions", file, license_name="CC0-1.0", source="friends")
    assert [(row.scale, row.value, row.rater, row.source) for row in imported.opinions] == [
        ("thumb", 1.0, "ann", "friends"), ("stars", 2.0, "bob", "friends"),
    ]  # fmt: skip
    assert imported.opinions[1].sha256 == "f" * 64


@pytest.mark.parametrize(
    ("name", "write", "rows", "complaint"),
    [
        ("music-arena", write_music_arena, [battle(1, "C")], r"0000-1.json: preference must be one of .* got 'C'"),
        ("music-arena", write_music_arena, [battle(1, "A", total_listening_time_a=-1)], "0000-1.json: total_list"),
        ("music-arena", write_music_arena, [battle(1, "A", timestamp="soon", date="")], "0000-1.json: timestamp"),
        ("aime", write_aime, [answer_of_aime(0, 1), answer_of_aime(1, 0)], r"survey.csv:3: answer .* got '0'"),
        ("aime", write_aime, [answer_of_aime(0, 1, **{"question-type": "Taste"})], "survey.csv:2: question-type"),
        ("aime", write_aime, [answer_of_aime(0, 1, **{"track-1-end": "00:00:13"})], "survey.csv:2: track-1-end"),
        ("aime", write_aime, [answer_of_aime(0, 1, **{"track-1-begin": "1:99"})], "survey.csv:2: track-1-begin"),
        ("songeval", write_songeval, [rated_song(0, [[1, 2, 3, 4, 6]])], "metadata.jsonl:1, annotation 1: Natur"),
        ("songeval", write_songeval, [rated_song(0, [])], "metadata.jsonl:1: annotation"),
        ("songeval", write_songeval, [rated_song(0, [[1] * 5]), rated_song(0, [[2] * 5])], "jsonl:2: file_name"),
        ("cmi-pref", write_cmi_pref, [cmi_pair(1, "a", "")], "train.jsonl:1: preference-musicality"),
        (
            "cmi-pref",
            write_cmi_pref,
            [cmi_pair(1, "model_a", "", **{"confidence_preference-musicality": "7"})],
            "train.jsonl:1: confidence_preference-musicality must be a number from 0 to 5",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_place(tmp_path, name, write, rows, complaint):
    with pytest.raises(DataError, match=complaint):
        import_preferences(name, write(tmp_path, rows))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("aime", AIME_COLUMNS),
        ("songeval", SONGEVAL_COLUMNS),
        ("musicprefs", ("audio_a", "audio_b", "musicality", "fidelity")),
    ],
)
def test_a_missing_column_is_named(tmp_path, name, columns):
    files = {"aime": "survey.csv", "musicprefs": "human_preference.csv", "songeval": "metadata.jsonl"}
    row = dict.fromkeys(columns[:-1], "1")
    path = tmp_path / files[name]
    (write_jsonl if path.suffix == ".jsonl" else write_csv)(path, [row])
    with pytest.raises(DataError, match=f"{files[name]}:1: has no column '{columns[-1]}'"):
        import_preferences(name, tmp_path)


def test_sounds_that_are_not_there_or_lie_outside_are_refused(tmp_path):
    folder = write_cmi_pref(tmp_path / "data", [cmi_pair(1, "model_a", "model_a")])
    (folder / "cmi-pref/gen-audio/1b.wav").unlink()
    with pytest.raises(DataError, match=r"train.jsonl:1: audio2 .* is no file"):
        import_preferences("cmi-pref", folder)
    write_tone(tmp_path / "secret.wav", 100)
    write_jsonl(folder / "train.jsonl", [cmi_pair(1, "model_a", "", **{"audio-path": "../secret.wav"})])
    with pytest.raises(DataError, match="lies outside"):
        import_preferences("cmi-pref", folder)


def test_clips_and_tracks_without_sound_are_refused(tmp_path):
    row = {"audio_a": "a.wav", "audio_b": "b.wav", "musicality": "a_wins", "fidelity": "a_wins"}
    folder = write_musicprefs(tmp_path / "m", [row])
    write_csv(folder / "human_preference.csv", [row, {**row, "audio_b": "c.wav"}])
    with pytest.raises(DataError, match=r"human_preference.csv:3: audio_b 'c.wav'"):
        import_preferences("musicprefs", folder)
    folder = write_aime(tmp_path / "a", [answer_of_aime(0, 1)])
    write_csv(folder / "survey.csv", [answer_of_aime(0, 1, **{"track-2-id": 77})])
    with pytest.raises(DataError, match=r"survey.csv:2: track-2-id '00077'"):
        import_preferences("aime", folder)


def test_pairs_of_texts_and_empty_sets_are_refused(tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x", "chosen": "yes please", "rejected": "no"}])
    with pytest.raises(DataError, match=r"p.jsonl:1: chosen must be a sound"):
        import_preferences("trl", file, license_name="MIT")
    with pytest.raises(DataError, match="holds no such data set; expected metadata"):
        import_preferences("songeval", tmp_path)
    (tmp_path / "e.json").write_text("[]")
    with pytest.raises(DataError, match="holds no votes and no opinions"):
        import_preferences("music-arena", tmp_path / "e.json")
    (tmp_path / "b.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match=r"b.json, entry 1: expected an object"):
        import_preferences("music-arena", tmp_path / "b.json")
