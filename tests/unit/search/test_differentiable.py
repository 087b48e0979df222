"""Features as tensors: known levels, known tones, and the package's own numbers where it has them."""

import math

import librosa
import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter

from diffdpo.scorers.structure import chroma_filters
from diffdpo.search.differentiable import (
    HOP_S,
    chromagram,
    loudness_curve,
    mel_cepstrum,
    moment_means,
    savitzky_golay,
    similarity_matrix,
    smooth,
)

RATE = 22050


def sine(hertz, seconds=2.0, amplitude=0.5, rate=RATE):
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * hertz * time)).float()[None]


@pytest.mark.parametrize("rate", [22050, 44100])
@pytest.mark.parametrize("amplitude", [1.0, 0.1, 0.01])
def test_the_level_of_a_sine_is_known(rate, amplitude):
    curve = loudness_curve(sine(440, amplitude=amplitude, rate=rate), rate)
    assert len(curve) == pytest.approx(2.0 / HOP_S, abs=2)
    expected = 20 * math.log10(amplitude / math.sqrt(2))
    assert torch.allclose(curve[4:-4], torch.tensor(expected), atol=0.1)


def test_a_known_gain_moves_the_curve_by_its_decibels_and_silence_has_a_gradient():
    noise = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    louder = loudness_curve(noise * 10 ** (6 / 20), RATE) - loudness_curve(noise, RATE)
    assert torch.allclose(louder, torch.tensor(6.0), atol=0.01)
    quiet = torch.full((1, RATE), 1e-6, requires_grad=True)
    (gradient,) = torch.autograd.grad(loudness_curve(quiet, RATE).sum(), quiet)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_the_filter_is_that_of_savitzky_and_golay():
    curve = torch.randn(80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inside = slice(10, -10)
    expected = savgol_filter(curve.numpy(), 21, 2)
    np.testing.assert_allclose(smooth(curve, 21).numpy()[inside], expected[inside], atol=1e-9)
    assert savitzky_golay(21, 2).sum().item() == pytest.approx(1)
    time = torch.arange(80, dtype=torch.float64)
    parabola = 0.1 * time**2 - 3 * time + 2
    assert torch.allclose(smooth(parabola, 21)[inside], parabola[inside])


@pytest.mark.parametrize("rate", [22050, 44100])
@pytest.mark.parametrize("pitch", [48, 57, 64, 71, 81])
def test_a_tone_has_the_pitch_class_of_its_note(pitch, rate):
    chroma = chromagram(sine(440 * 2 ** ((pitch - 69) / 12), rate=rate), rate)[5:-5]
    assert (chroma.argmax(1) == pitch % 12).all()
    neighbours = [(pitch % 12 + step) % 12 for step in (3, 4, 5, 6, 7, 8, 9)]
    assert chroma[:, neighbours].max() < 0.1
    assert torch.allclose(chroma.norm(dim=1), torch.tensor(1.0), atol=1e-3)


def test_chroma_agrees_with_the_scorers_filters():
    """A chord by the filters of the structure scorer, which are wider: the same three classes stand out."""
    chord = sum(sine(440 * 2 ** (step / 12)) for step in (0, 4, 7))
    own = chromagram(chord, RATE)[10:-10].mean(0)
    spectrum = np.abs(librosa.stft(chord[0].numpy(), n_fft=4096, hop_length=2048)) ** 2
    other = torch.from_numpy(np.sqrt(chroma_filters() @ spectrum).mean(1))
    assert torch.nn.functional.cosine_similarity(own, other.float(), dim=0) > 0.93
    assert set(own.topk(3).indices.tolist()) == {9, 1, 4}


def test_silence_has_no_pitch_class():
    assert chromagram(torch.zeros(2, RATE), RATE).norm(dim=1).max() < 0.1


def test_the_cepstrum_is_the_cosine_transform_of_mel_levels():
    """Its coefficient 0 moves by sqrt(bands) per dB, and the others do not hear a gain at all."""
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    step = mel_cepstrum(noise * 10 ** (6 / 20), RATE) - mel_cepstrum(noise, RATE)
    inside = slice(3, -3)
    assert torch.allclose(step[inside, 0], torch.tensor(6 * math.sqrt(40)), rtol=1e-3)
    assert step[inside, 1:].abs().max() < 0.05
    dark, bright = (mel_cepstrum(sine(hertz), RATE)[inside, 1].mean() for hertz in (100, 5000))
    assert dark > bright


def test_the_self_similarity_of_a_form_shows_it():
    first, second = torch.eye(12)[0], torch.eye(12)[5]
    frames = torch.stack([first, second, first, second]).repeat_interleave(10, 0)
    moments = moment_means(frames, 5)
    matrix = similarity_matrix(moments)
    kinds = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    expected = torch.where(kinds[:, None] == kinds, 1.0, -1.0)
    assert torch.allclose(matrix, expected, atol=1e-4)
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("feature", [loudness_curve, chromagram, mel_cepstrum])
def test_gradients_are_those_of_finite_differences(feature):
    sound = (sine(330, 0.6) + sine(550, 0.6)).double()
    weights = torch.randn(feature(sound, RATE).shape, generator=torch.Generator().manual_seed(2)).double()

    def loss(value):
        return (weights * feature(value, RATE)).sum()

    leaf = sound.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction = gradient / gradient.norm()
    slope = (loss(sound + 1e-5 * direction) - loss(sound - 1e-5 * direction)) / 2e-5
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-3)
