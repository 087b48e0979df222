"""Novelty: closed forms, and mining by it from a folder of songs to a table of pairs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from support.launch import verb
from support.listening import sine, write_songs

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.features import FEATURE_TABLE
from diffdpo.data.pairs import PAIRS
from diffdpo.data.samples import SAMPLES, open_samples
from diffdpo.data.scores import SCORES, score_rows
from diffdpo.mining import novelty
from diffdpo.runs import MANIFEST, finish, read_json
from diffdpo.types import Clip


def test_the_odd_one_of_three_and_a_song_alone():
    embeddings = np.array([[2.0, 0], [1, 0], [0, 5], [1, 1], [np.nan, 0], [0, 0]])
    values = novelty(embeddings, ["a", "a", "a", "b", "b", "b"])
    np.testing.assert_allclose(values, [0.5, 0.5, 1, np.nan, np.nan, np.nan])


@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 1000))
def test_it_is_the_mean_of_the_cosine_distances_to_the_others_whatever_their_order(songs, prompts, seed):
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(songs * prompts, 5))
    ids = [str(place % prompts) for place in range(songs * prompts)]
    expected = np.empty(len(ids))
    for prompt in set(ids):
        places = [place for place, name in enumerate(ids) if name == prompt]
        expected[places] = cdist(embeddings[places], embeddings[places], "cosine").sum(1) / (songs - 1)
    np.testing.assert_allclose(novelty(embeddings, ids), expected, atol=1e-12)
    order = generator.permutation(len(ids))
    moved = novelty(embeddings[order] * 3, [ids[place] for place in order])
    np.testing.assert_allclose(moved, expected[order], atol=1e-12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three songs that are alike, noise in their midst, and silence, all with the same score."""
    samples = write_songs(tmp_path / "samples", prompts=1, per_prompt=5, seconds=2.0)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 2 * 44100)).astype(np.float32)
    songs = {"p00.002": Clip(samples=noise, sample_rate=44100), "p00.004": sine(400, 2.0, level=0.0)}
    table = tables.read_columns(samples, SAMPLES).to_pylist()
    scores = []
    for row in table:
        if clip := songs.get(row["sample_id"]):
            audio.write(samples / "audio" / f"{row['sample_id']}.flac", clip)
            row["sha256"] = audio.pcm_sha256(*audio_of(samples / "audio" / f"{row['sample_id']}.flac"))
        scores += score_rows(row["sha256"], "1", "harmony", "f" * 16, [("harmony.key", 0.5)])
    tables.replace(samples, SAMPLES, tables.read_columns(samples, SAMPLES).from_pylist(table, SAMPLES.schema))
    finish(samples)
    (tmp_path / "scores").mkdir()
    tables.append(tmp_path / "scores", SCORES, scores)
    finish(tmp_path / "scores", scorers={"harmony": "f" * 16})
    return tmp_path


def audio_of(path: Path) -> tuple[np.ndarray, int]:
    clip = audio.read(path, with_fold=False)
    return clip.samples, clip.sample_rate


def mine(folder: Path, *words: str, code: int = 0) -> str:
    return verb(
        "mine", f"samples=[{folder / 'samples'}]", f"scores={folder / 'scores'}", f"out={folder / 'pairs'}", *words,
        code=code,
    )  # fmt: skip


def test_of_songs_of_one_score_the_one_unlike_the_others_wins(folder):
    mine(folder, "novelty=[style]", "rule.args.pairs_per_prompt=9", "rule.args.weights={novelty.style: 2.0}")
    pairs = tables.read_rows(folder / "pairs", PAIRS)
    assert {pair.winner for pair in pairs} == {"p00.002"}  # silence has no embedding and takes no part
    assert {pair.loser for pair in pairs} <= {"p00.000", "p00.001", "p00.003"}
    assert all(pair.margins["harmony.key"] == 0 < pair.margins["novelty.style"] for pair in pairs)
    manifest = read_json(folder / "pairs" / MANIFEST)
    assert manifest["axes"] == ["harmony.key", "novelty.style"]
    assert len(tables.read_rows(folder / "pairs", FEATURE_TABLE)) == len(
        open_samples(folder / "samples").rows()
    )


def test_embeddings_are_kept_and_a_finished_folder_is_left_as_it_is(folder):
    mine(folder, "novelty=[style]")
    shutil.rmtree(folder / "samples" / "audio")
    assert "ratings" not in mine(folder, "novelty=[style]")
    (folder / "pairs" / MANIFEST).unlink()
    assert "ratings" in mine(folder, "novelty=[style]")  # without a sound: the embeddings are there


def test_songs_without_their_sound_are_named_and_left_out(folder):
    (folder / "samples" / "audio" / "p00.001.flac").unlink()
    assert "p00.001.flac: no such file" in mine(folder, "novelty=[style]")
    assert "p00.001" not in {pair.loser for pair in tables.read_rows(folder / "pairs", PAIRS)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["novelty=[stile]"], "Did you mean 'style'?"),
        (["novelty=[style,style]"], "novelty: 'style' is named twice"),
        (["weights={novelty.style: 1}"], "weights: unknown axis 'novelty.style'"),
        (["novelty=[style]", "rule.args.weights={novelty.musicnn: 1}"], "'novelty.musicnn' is not among the mined"),
        (["novelty=[style]", "scores="], "add scores="),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_the_work(folder, words, message):
    assert message in mine(folder, *words, code=2)
    assert not (folder / "pairs" / PAIRS.folder).exists()
