"""Shared features: librosa's numbers, computed once, and the same scores whoever shares them."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.scorers import DEFAULT_SCORERS, SCORERS
from diffdpo.scorers.base import FeatureScorer
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.engine import score_clips
from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, clip_run_ratio, mono, stft
from diffdpo.scorers.harmony import BINS_PER_OCTAVE, OCTAVES, constant_q
from diffdpo.threads import single_thread
from diffdpo.types import Clip, Prompt

SONG = audio.read(Path(__file__).parents[2] / "data" / "galactic_temple.ogg", start_s=40.0, seconds=10.0)
LOCAL = [
    name
    for name in (*DEFAULT_SCORERS, "adherence", "notes", "beats")
    if issubclass(SCORERS[name], FeatureScorer)
]
"""The scorers that share features and need no download."""


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return mono(ClipFeatures(SONG))


@pytest.mark.parametrize(("n_fft", "hop"), [(2048, 512), (4096, 1024), (4096, 2048)])
def test_the_fourier_transform_is_librosas(samples, n_fft, hop):
    reference = librosa.stft(samples, n_fft=n_fft, hop_length=hop)
    assert np.abs(stft(samples, n_fft, hop) - reference).max() < 1e-6 * np.abs(reference).max()


@pytest.mark.parametrize("tuning", [0.0, -0.37, 0.49])
def test_the_constant_q_transform_is_librosas(samples, tuning):
    lowest = float(librosa.note_to_hz("C2"))
    reference = np.abs(
        librosa.cqt(
            samples,
            sr=SAMPLE_RATE,
            hop_length=2048,
            fmin=lowest,
            n_bins=OCTAVES * BINS_PER_OCTAVE,
            bins_per_octave=BINS_PER_OCTAVE,
            tuning=tuning * BINS_PER_OCTAVE / 12,
        )
    )
    energy = constant_q(samples, lowest * 2 ** (tuning / 12))
    assert np.abs(energy - reference).max() < 1e-5 * reference.max()


def test_a_feature_is_computed_once_for_each_choice_of_arguments():
    calls: list[int] = []

    def length(features: ClipFeatures, factor: int) -> int:
        calls.append(factor)
        return factor * features.clip.samples.shape[1]

    features = ClipFeatures(SONG)
    samples = SONG.samples.shape[1]
    assert [features.get(length, factor) for factor in (1, 2, 1)] == [samples, 2 * samples, samples]
    assert calls == [1, 2]


@pytest.mark.parametrize("clip", [SONG, Clip(samples=SONG.samples[:1, :9000], sample_rate=SONG.sample_rate)])
def test_scorers_that_share_features_score_as_they_do_alone(clip):
    scorers = {name: SCORERS[name]() for name in LOCAL}
    prompt = Prompt(id="p", text="electronic, slow")
    (together,) = score_clips([clip], scorers, prompts=[prompt])
    for name, scorer in scorers.items():
        clips = [canonical(clip)]
        with single_thread():  # as the engine computes; a sum over more threads has other last bits
            row = scorer(clips, [prompt]) if hasattr(scorer, "needs_prompt") else scorer(clips)
        assert [together.values[axis] for axis in scorer.axes] == row[0].tolist(), name


@pytest.mark.slow
def test_the_number_of_threads_changes_no_score():
    scorers = {name: SCORERS[name]() for name in LOCAL}
    rate = SONG.sample_rate
    clips = [Clip(samples=SONG.samples[:, s * rate : (s + 6) * rate], sample_rate=rate) for s in range(5)]
    prompts = [Prompt(id="p", text="electronic, slow")] * len(clips)
    scores, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            scores.append(score_clips(clips, scorers, prompts=prompts))
    finally:
        torch.set_num_threads(threads)
    assert scores[0] == scores[1]


def test_runs_at_the_peak_are_counted_by_channel_and_sign():
    samples = np.zeros((2, 20), np.float32)
    samples[0, :4] = 1.0  # a run of four
    samples[0, 6:8], samples[0, 8:10] = 1.0, -1.0  # two runs of two: too short, though neighbours
    samples[1, 17:] = -0.5  # a run of three, at this channel's own peak
    assert clip_run_ratio(samples) == pytest.approx(7 / 40)
    assert clip_run_ratio(np.zeros((1, 5), np.float32)) == 0
