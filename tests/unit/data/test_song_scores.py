"""Scores in columns: the newest of every scorer, joined to the songs they are about."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.data import tables
from diffdpo.data.samples import PROMPTS, SAMPLES, SampleRow, open_samples
from diffdpo.data.scores import (
    NO_PROMPT,
    SCORES,
    WINDOWS,
    Grid,
    ScoreRow,
    prompt_key,
    read_windows,
    window_rows,
)
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.errors import DataError
from diffdpo.runs import write_json
from diffdpo.types import Prompt

VERSIONS = {"harmony": "v2", "adherence": "v1"}
PROMPT = {name: Prompt(id=name, text=f"text of {name}") for name in ("p", "q")}
PROMPT_KEY = {name: prompt_key(prompt) for name, prompt in PROMPT.items()}


def write_world(folder, songs, rows):
    """Samples (sample id, prompt, hash, error) and scores as they stand after `score`."""
    tables.append(
        folder / "samples",
        SAMPLES,
        [SampleRow(sample_id=s, prompt_id=p, group=f"group {p}", sha256=h, error=e) for s, p, h, e in songs],
    )
    lines = [
        json.dumps({"id": name, "text": prompt.text, "duration_s": 1}) for name, prompt in PROMPT.items()
    ]
    (folder / "samples" / PROMPTS).write_text("\n".join(lines))
    tables.append(folder / "scores", SCORES, rows)
    write_json(
        folder / "scores" / "manifest.json", {"scorers": VERSIONS, "grid": {"window_s": 5, "hop_s": 5}}
    )
    samples = open_samples(folder / "samples")
    return join_scores(read_scores(folder / "scores"), samples, samples.prompts())


def score(sha256, axis, value, *, scorer="harmony", version="v2", **more):
    return ScoreRow(sha256=sha256, scorer=scorer, fingerprint=version, axis=axis, value=value, **more)


def test_old_versions_windows_and_songs_that_failed_do_not_count(tmp_path):
    songs = write_world(
        tmp_path,
        [
            ("p.0", "p", "s0", ""),
            ("p.1", "p", "s1", ""),
            ("p.2", "p", "s0", "it broke"),
            ("p.3", "p", "s3", ""),
        ],
        [
            score("s0", "harmony.key", 1.0, version="v1"),
            score("s0", "harmony.key", 2.0),
            score("s0", "harmony.key", 3.0, window="5/5"),
            score("s1", "harmony.key", math.nan),
            score("s1", "old.axis", 4.0, scorer="old"),
            score("elsewhere", "harmony.tuning", 5.0),
        ],
    )
    assert songs.axes == ("harmony.key", "harmony.tuning")
    assert songs.sample_ids == ["p.0", "p.1"]
    assert songs.prompt_ids == ["p", "p"]
    assert songs.groups == ["group p"] * 2
    assert songs.has_score.tolist() == [[True, False], [True, False]]
    assert np.array_equal(songs.values, [[2.0, math.nan], [math.nan, math.nan]], equal_nan=True)


def test_a_score_for_the_prompt_is_that_of_its_songs_alone(tmp_path):
    songs = write_world(
        tmp_path,
        [("p.0", "p", "s", ""), ("q.0", "q", "s", "")],
        [
            score("s", "harmony.key", 1.0),
            score("s", "adherence.style", 2.0, scorer="adherence", version="v1", prompt=PROMPT_KEY["p"]),
            score("s", "adherence.style", 3.0, scorer="adherence", version="v1", prompt=PROMPT_KEY["q"]),
            score("s", "adherence.style", 4.0, scorer="adherence", version="v1", prompt="another"),
        ],
    )
    assert songs.by_song() == {
        "p.0": {"harmony.key": 1.0, "adherence.style": 2.0},
        "q.0": {"harmony.key": 1.0, "adherence.style": 3.0},
    }


SOUNDS = st.sampled_from(["s0", "s1", "s2", "s3", "elsewhere"])
ROWS = st.builds(
    lambda scorer, place, **more: score(axis=f"{scorer}.{place}", scorer=scorer, **more),
    scorer=st.sampled_from(["harmony", "adherence", "old"]),
    place=st.integers(0, 2),
    sha256=SOUNDS,
    value=st.floats(-1, 1),
    version=st.sampled_from(["v1", "v2"]),
    prompt=st.sampled_from([NO_PROMPT, *PROMPT_KEY.values(), "another"]),
    preprocessing=st.sampled_from("12"),
)


@settings(max_examples=60)
@given(rows=st.lists(ROWS, max_size=40), sounds=st.lists(SOUNDS, min_size=1, max_size=8))
def test_columns_join_as_dictionaries_would(tmp_path_factory, rows, sounds):
    names = [("p" if k % 2 else "q", f"{'p' if k % 2 else 'q'}.{k}", sound) for k, sound in enumerate(sounds)]
    songs = write_world(tmp_path_factory.mktemp("w"), [(s, p, h, "") for p, s, h in names], rows)
    written = {}
    for row in rows:  # of equal keys the last, in its place
        key = tuple(getattr(row, name) for name in SCORES.key)
        written.pop(key, None)
        written[key] = row
    by_sound = {}
    for row in written.values():
        if VERSIONS.get(row.scorer) == row.fingerprint:
            by_sound.setdefault((row.sha256, row.prompt), {})[row.axis] = row.value
    expected = {
        song: by_sound.get((sound, NO_PROMPT), {}) | by_sound.get((sound, PROMPT_KEY[prompt]), {})
        for prompt, song, sound in names
    }
    assert songs.by_song() == {song: values for song, values in expected.items() if values}


def test_scores_of_whole_songs_are_read_without_the_windows(tmp_path):
    songs = write_world(tmp_path, [("p.0", "p", "s", "")], [score("s", "harmony.key", 1.0)])
    (tmp_path / "scores" / WINDOWS.folder).mkdir()
    (tmp_path / "scores" / WINDOWS.folder / "part-s00000000-r00000.parquet").write_bytes(b"no table")
    assert read_scores(tmp_path / "scores").axes == songs.axes


def test_windows_are_those_of_the_newest_grid_and_of_the_sounds_asked_for(tmp_path):
    write_world(tmp_path, [("p.0", "p", "s", "")], [score("s", "harmony.key", 1.0)])
    rows = []
    for sound, grid, version in (("s", Grid(5, 5), "v2"), ("s", Grid(3, 3), "v2"), ("t", Grid(5, 5), "v2")):
        key = {"sha256": sound, "preprocessing": "1", "scorer": "harmony", "fingerprint": version}
        rows += window_rows(key, grid, [0.0, 5.0], {"harmony.key": [1.0, 2.0], "harmony.tuning": [3.0, 4.0]})
    tables.append(tmp_path / "scores", WINDOWS, rows)
    assert read_windows(tmp_path / "scores", ["s", "u"]) == {
        "s": {
            (0.0, 5.0): {"harmony.key": 1.0, "harmony.tuning": 3.0},
            (5.0, 10.0): {"harmony.key": 2.0, "harmony.tuning": 4.0},
        }
    }


def test_a_folder_without_finished_scores_says_so(tmp_path):
    with pytest.raises(DataError, match="no finished scores here; run `diffdpo score` first"):
        read_scores(tmp_path)
