"""The judge prefers music to what is none."""

from pathlib import Path

import numpy as np
import pytest

from diffdpo import audio
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.musicnn import FARTHEST, EmbeddingGaussian, MusicnnTypicality, pool_patches
from diffdpo.types import Clip

SONG = Path(__file__).parents[2] / "data" / "galactic_temple.ogg"
RATE = 44_100


def typicality(samples: np.ndarray) -> float:
    clip = Clip(samples=np.atleast_2d(samples).astype(np.float32), sample_rate=RATE)
    return MusicnnTypicality()([canonical(clip)]).item()


def test_a_song_is_more_typical_than_noise_shuffled_samples_and_a_sine():
    rng = np.random.default_rng(0)
    song = audio.read(SONG, start_s=40.0, seconds=10.0).samples
    spectrum = np.fft.rfft(rng.standard_normal((2, song.shape[1])))
    pink = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(spectrum.shape[1])))
    others = {
        "white noise": rng.standard_normal(song.shape),
        "pink noise": pink,
        "shuffled samples": song[:, rng.permutation(song.shape[1])],
        "a sine": np.sin(2 * np.pi * 440 * np.arange(song.shape[1]) / RATE),
    }
    real = typicality(song)
    for name, samples in others.items():
        assert typicality(samples) < real - 0.5, name
    assert typicality(np.zeros((1, RATE))) == -FARTHEST


def test_distance_is_one_for_a_point_one_deviation_away_in_every_direction():
    """Two axes with deviations 2 and 3, two directions left out with deviation 0.5."""
    gaussian = EmbeddingGaussian(
        mean=np.ones(4), axes=np.eye(4)[:2], variances=np.array([4.0, 9.0]), residual_variance=0.25
    )
    points = np.array([[3.0, 4.0, 1.5, 0.5], [1.0, 1.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0]])
    assert gaussian.distance(points) == pytest.approx([1.0, 0.0, 1.0])


def test_a_window_is_the_mean_of_three_patches():
    patches = np.arange(8.0)[:, None]
    assert pool_patches(patches)[:, 0] == pytest.approx([1.0, 4.0])
    assert pool_patches(patches[:2])[:, 0] == pytest.approx([0.5])


def test_weights_have_an_identity():
    assert len(MusicnnTypicality().weights_hash) == 64
