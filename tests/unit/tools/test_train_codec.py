"""The onset strength that the codec is trained on, against librosa's on sound with known attacks."""

import importlib.util
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from diffdpo.codecs.spectral import SpectralCodec

RATE = 44100
FIRST = 5
"""A strength is of windows that begin so many steps of 512 samples behind librosa's centred ones."""


@pytest.fixture(scope="module")
def training():
    path = Path(__file__).parents[3] / "tools" / "tiny" / "train_codec.py"
    spec = importlib.util.spec_from_file_location("train_codec", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def codec():
    return SpectralCodec()


def test_every_mel_band_lies_in_one_attack_band(training, codec):
    shares = training.mel_shares(codec)
    assert len(shares) == len(codec.attack_bands.widths)
    assert float(shares.sum()) == pytest.approx(1)
    assert (shares > 0).all()


def test_onset_strength_rises_where_librosas_does(training, codec):
    rng = np.random.default_rng(0)
    sound = 1e-3 * rng.normal(size=6 * RATE)
    for start in np.arange(0.5, 5.5, 0.37):
        at, length = int(start * RATE), RATE // 5
        sound[at : at + length] += (
            rng.uniform(0.05, 0.3) * rng.normal(size=length) * np.exp(-np.arange(length) / 2000)
        )
    sound = sound.astype(np.float32)
    features = codec.analyse(torch.from_numpy(np.stack([sound, sound]))[None])
    ours = training.strength(codec, features, training.mel_shares(codec))[0].numpy()
    theirs = librosa.onset.onset_strength(y=sound, sr=RATE, hop_length=512)[FIRST : FIRST + len(ours)]
    assert np.corrcoef(ours[20:480], theirs[20:480])[0, 1] > 0.9


def test_louder_songs_have_the_same_onsets(training, codec):
    features = torch.rand(1, 32, codec.features) + 0.3
    shares = training.mel_shares(codec)
    plain, louder = (training.strength(codec, gain * features, shares) for gain in (1.0, 1.4))
    assert torch.allclose(plain, louder, atol=1e-3)


def test_features_in_pieces_are_those_of_the_whole(training, codec):
    samples = 0.1 * torch.randn(2, 2048 * 21 + 700, generator=torch.Generator().manual_seed(0))
    whole = codec.analyse(samples[None])[0]
    assert torch.allclose(training.analyse_song(codec, samples, chunk=8), whole, atol=1e-5)
    assert torch.allclose(training.analyse_song(codec, samples, chunk=100), whole, atol=1e-5)
