"""Similar songs: what each reader is blind to, and an index that finds what all distances find."""

import sys

import numpy as np
import pytest

from diffdpo import audio
from diffdpo.errors import ConfigError
from diffdpo.evaluation.similarity import READERS, nearest, read_song, text_style
from diffdpo.types import Clip

RATE = 22050
CADENCE = [(0, 4, 7), (5, 9, 0), (7, 11, 2), (0, 4, 7)]
MINOR_WALK = [(0, 3, 7), (10, 2, 5), (8, 0, 3), (7, 10, 2)]
CLUSTERS = [(0, 1, 2), (6, 7, 8), (3, 4, 5), (9, 10, 11)]


def chords(progression, key: int, *, bar_s: float = 1.0, partials=(1.0, 0.5, 0.25)) -> Clip:
    """Chords from 200 Hz up, in a key, twice over."""
    times = np.arange(int(bar_s * RATE)) / RATE
    bars = []
    for chord in progression * 2:
        notes = [200 * 2 ** (((step + key) % 12) / 12) for step in chord]
        waves = [a * np.sin(2 * np.pi * f * (k + 1) * times) for f in notes for k, a in enumerate(partials)]
        bars.append(sum(waves) * np.minimum(1, 20 * (bar_s - times)))
    wave = np.concatenate(bars)
    return Clip(samples=(wave / np.abs(wave).max() * 0.5)[None].astype(np.float32), sample_rate=RATE)


def clicks(bpm: float, *, hertz: float = 0.0, seconds: float = 8.0) -> Clip:
    """Short bursts of noise, or of a tone, at a tempo."""
    rng = np.random.default_rng(0)
    wave = np.zeros(int(seconds * RATE))
    burst = np.exp(-np.arange(2000) / 300)
    burst = burst * (
        np.sin(2 * np.pi * hertz * np.arange(2000) / RATE) if hertz else rng.standard_normal(2000)
    )
    for beat in np.arange(0, seconds - 0.2, 60 / bpm):
        wave[int(beat * RATE) :][:2000] += burst
    return Clip(samples=(0.3 * wave / np.abs(wave).max())[None].astype(np.float32), sample_rate=RATE)


def features(tmp_path, reader: str, clips) -> np.ndarray:
    rows = []
    for number, clip in enumerate(clips):
        audio.write(tmp_path / f"{number}.wav", clip)
        rows.append(read_song(tmp_path / f"{number}.wav", reader))
    return np.array(rows)


def test_harmony_is_blind_to_the_key_and_sees_the_progression(tmp_path):
    songs = [
        chords(CADENCE, 0),
        chords(CADENCE, 5),
        chords(CADENCE, 9, partials=(1.0, 0.2)),
        chords(MINOR_WALK, 0),
    ]
    rows = features(tmp_path, "harmony", [*songs, chords(CLUSTERS, 0)])
    order = [place for place, _ in nearest(rows[0], rows, 5)]
    assert order[0] == 0
    assert set(order[1:3]) == {1, 2}, "the same in other keys and with other overtones"
    assert order[-1] == 4, "clusters are the furthest"
    distances = dict(nearest(rows[0], rows, 5))
    assert distances[1] < distances[3] / 3


def test_rhythm_is_blind_to_the_sound_and_sees_the_tempo(tmp_path):
    tempi = [100, 103, 140, 66]
    rows = features(tmp_path, "rhythm", [clicks(bpm) for bpm in tempi] + [clicks(100, hertz=440.0)])
    distances = dict(nearest(rows[0], rows, 5))
    assert distances[4] < distances[2]
    assert distances[1] < distances[2]
    assert distances[1] < distances[3]


def test_style_of_a_sound_and_of_words(tmp_path):
    rows = features(tmp_path, "style", [clicks(160), chords(CADENCE, 0), clicks(150)])
    assert [place for place, _ in nearest(rows[0], rows, 3)] == [0, 2, 1]
    assert np.linalg.norm(text_style("slow and smooth")) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match="has no words"):
        text_style("!?")


def test_level_is_no_matter_and_silence_has_no_features(tmp_path):
    loud = chords(CADENCE, 2)
    quiet = Clip(samples=loud.samples * 0.1, sample_rate=RATE)
    silence = Clip(samples=np.zeros_like(loud.samples), sample_rate=RATE)
    for reader in READERS:
        rows = features(tmp_path, reader, [loud, quiet, silence])
        assert np.linalg.norm(rows[0] - rows[1]) < 0.02, reader
        assert np.isnan(rows[2]).all(), reader


def test_an_index_without_its_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ConfigError, match=r"pip install .diffdpo\[people\]"):
        nearest(np.zeros(2), np.zeros((3, 2)), 1, index=tmp_path / "i.usearch")


def test_an_index_finds_what_all_distances_find(tmp_path):
    rng = np.random.default_rng(1)
    songs = rng.standard_normal((3000, 16))
    queries = rng.standard_normal((20, 16))
    hits = 0
    for query in queries:
        exact = nearest(query, songs, 10)
        distances = np.sort(np.linalg.norm(songs - query, axis=1))[:10]
        assert [distance for _, distance in exact] == pytest.approx(list(distances))
        graph = nearest(query, songs, 10, index=tmp_path / "i.usearch")
        hits += len({place for place, _ in exact} & {place for place, _ in graph})
    assert hits >= 0.95 * 200
    for step in (2, 100):  # half of the songs, by the graph; few, all compared
        candidates = list(range(0, 3000, step))
        graph = nearest(queries[0], songs, 5, candidates=candidates, index=tmp_path / "i.usearch")
        assert graph == nearest(queries[0], songs, 5, candidates=candidates)
    changed = nearest(songs[7] + 1, np.vstack([songs, songs[7] + 1]), 1, index=tmp_path / "i.usearch")
    assert changed[0] == (3000, 0.0), "made anew for other features"
