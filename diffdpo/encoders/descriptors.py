"""Descriptors of sound: seven measures of a song, and words for their low and high values (slow, fast, …).

Captions consist of these words, the style encoder takes the measures, and tests of conditioning compare them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.audio import resample
from diffdpo.randomness import generator
from diffdpo.types import Clip

RATE = 22050
MEASURES: dict[str, tuple[str, str]] = {
    "tempo_bpm": ("slow", "fast"),
    "centroid_octaves": ("dark", "bright"),
    "onsets_per_s": ("sparse", "busy"),
    "punch": ("smooth", "punchy"),
    "mode": ("minor", "major"),
    "width_db": ("narrow", "wide"),
    "dynamics_db": ("even", "dynamic"),
}
"""Each measure, with its word for the lower and for the upper third."""
THIRDS = {
    "tempo_bpm": (117.45, 129.2),
    "centroid_octaves": (10.29, 10.94),
    "onsets_per_s": (3.9, 5.33),
    "punch": (1.22, 2.06),
    "mode": (-0.1, 0.01),
    "width_db": (-9.05, -5.24),
    "dynamics_db": (7.53, 11.68),
}
"""The terciles of each measure over 10 s windows of the 170 training songs of tools/tiny/corpus/songs.jsonl."""
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
"""Key profiles: how well each pitch class fits a key on C (probe tones: Krumhansl & Kessler 1982)."""


def measured_words(values: Mapping[str, float], thirds: Mapping[str, Sequence[float]]) -> list[str]:
    """The word of every measure that lies below or above its middle third."""
    descriptors = []
    for name, (low, high) in thirds.items():
        if values[name] < low:
            descriptors.append(MEASURES[name][0])
        elif values[name] > high:
            descriptors.append(MEASURES[name][1])
    return descriptors


def directions(words: Iterable[str], dim: int) -> Float[Tensor, " {dim}"]:
    """The unit sum of the words' directions, the same on every machine; zeros for no words."""
    total = torch.zeros(dim)
    for word in sorted(words):
        direction = torch.randn(dim, generator=generator(0, word, "style-word"))
        total += direction / direction.norm()
    return total / total.norm().clamp(min=1e-9)


def measure(clip: Clip, mono: Float[np.ndarray, " sample"] | None = None) -> dict[str, float]:
    """The measures of MEASURES of an excerpt of some seconds. Level does not matter.

    `mono` is the mean of the channels at RATE, where the caller has computed it.
    """
    import librosa

    stereo = clip.samples if clip.samples.shape[0] > 1 else np.repeat(clip.samples, 2, axis=0)
    if mono is None:
        mean = Clip(samples=stereo.mean(0, keepdims=True), sample_rate=clip.sample_rate)
        mono = resample(mean, RATE).samples[0]
    mono = mono / max(1e-9, float(np.abs(mono).max(initial=0.0)))
    spectrum = np.abs(librosa.stft(mono, n_fft=2048, hop_length=512))
    centroid = librosa.feature.spectral_centroid(S=spectrum, sr=RATE)
    onsets = librosa.onset.onset_strength(S=librosa.amplitude_to_db(spectrum, ref=np.max), sr=RATE)
    times = librosa.onset.onset_detect(onset_envelope=onsets, sr=RATE, units="time")
    tempo = librosa.feature.tempo(onset_envelope=onsets, sr=RATE)
    chroma = librosa.feature.chroma_stft(S=spectrum**2, sr=RATE, tuning=estimate_tuning(spectrum**2)).mean(1)
    middle, side = (float(((stereo[0] + sign * stereo[1]) ** 2).mean()) for sign in (1, -1))
    power = (spectrum**2).sum(0)
    levels = 10 * np.log10(power + 1e-6 * power.max() + 1e-20)
    return {
        "tempo_bpm": float(tempo[0]),
        "centroid_octaves": float(np.log2(np.maximum(centroid, 20)).mean()),
        "onsets_per_s": len(times) / max(1e-9, len(mono) / RATE),
        "punch": float(onsets[8:].std()) if len(onsets) > 9 else 0.0,  # the beginning is an onset in itself
        "mode": key_fit(chroma, MAJOR) - key_fit(chroma, MINOR),
        "width_db": 10 * math.log10((side + 1e-6 * middle + 1e-20) / (middle + 1e-6 * side + 1e-20)),
        "dynamics_db": float(np.quantile(levels, 0.95) - np.quantile(levels, 0.1)),
    }


def estimate_tuning(power: Float[np.ndarray, "bin frame"]) -> float:
    """Deviation from A440 in semitones, as librosa estimates it from tones of 150 to 4,000 Hz; 0 without tones.

    librosa gets the lower half of the spectrum, as that of a sound at half the rate: all these tones lie in it.
    """
    import librosa

    half = power[: len(power) // 2 + 1]
    hertz, loudness = librosa.piptrack(S=half, sr=RATE / 2, ref=0.1 * power.max(0))
    tones = hertz > 0
    if not tones.any():
        return 0.0
    loud = loudness >= np.median(loudness[tones])
    return float(librosa.pitch_tuning(hertz[tones & loud], bins_per_octave=12))


def key_fit(chroma: Float[np.ndarray, "12"], profile: Float[np.ndarray, "12"]) -> float:
    """The best correlation of a chroma vector with a key profile over the twelve tonics."""
    if chroma.std() < 1e-9:
        return 0.0
    return max(float(np.corrcoef(chroma, np.roll(profile, tonic))[0, 1]) for tonic in range(12))
