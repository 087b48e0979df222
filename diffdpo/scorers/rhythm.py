"""Rhythm: is there a pulse, and does its tempo hold?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range
from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, mel_filters, mono, score_each
from diffdpo.types import Clip

STFT, HOP, BANDS = 2048, 512, 128
ONSET_FRAMES_PER_SECOND = SAMPLE_RATE / HOP
SHORTEST_S, LONGEST_S = 0.25, 2.0
"""Periods that can be felt as a pulse or a bar: 240 to 30 a minute."""


@dataclass(frozen=True)
class Rhythm:
    """Pulse clarity and steadiness of tempo, both from the autocorrelation of the onset strength.

    rhythm.pulse   Highest autocorrelation at a period of 0.25 to 2 s (pulse clarity: Lartillot et al. 2008),
                   saturating at `clearest`: beyond it a machine gets no extra credit. In [0, 1]; noise about
                   0.15, songs 0.5 to 1.
    rhythm.tempo   tolerance / (tolerance + d), where d is the mean relative deviation of the periods in
                   windows of up to 4 s from that of the whole clip, weighted by their pulse. In [0, 1];
                   songs 0.6 to 0.95, noise about 0.2.

    How it can be gamed: a metronome, or a loop of one bar, gets 1 on both; hence the saturation, and
    structure as the counterweight. Rubato, ambient and free singing score low without being bad. Clips of
    one second and less get 0.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("rhythm.pulse", "rhythm.tempo")
    traits: ClassVar[Mapping[str, str]] = {"rhythm.pulse": "rhythm", "rhythm.tempo": "rhythm"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 4.0
    weights_hash: ClassVar[str] = ""

    clearest: float = 0.8
    tolerance: float = 0.01
    """Mean relative deviation of the local periods at which rhythm.tempo is one half."""

    def __post_init__(self) -> None:
        check_range(self, "clearest", above=0, high=1)
        check_range(self, "tolerance", above=0)

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float, float]:
        onsets = onset_strength(features)
        correlation = autocorrelation(onsets)
        shortest = round(SHORTEST_S * ONSET_FRAMES_PER_SECOND)
        longest = round(min(LONGEST_S * ONSET_FRAMES_PER_SECOND, len(onsets) / 4))
        if not onsets.any() or longest <= shortest:
            return 0.0, 0.0
        period = shortest + int(correlation[shortest:longest].argmax())
        pulse = float(np.clip(correlation[period] / self.clearest, 0, 1))
        return pulse, self.tolerance / (self.tolerance + tempo_deviation(onsets, period))


def onset_strength(features: ClipFeatures) -> Float[np.ndarray, " frame"]:
    """Log-compressed spectral flux, without the false onset at the edge of the clip; 0 throughout in
    silence.
    """
    samples = mono(features)
    if not samples.any():
        return np.zeros(len(samples) // HOP)
    import librosa

    # by librosa: the tempo of a clip without a clear pulse hangs on the last digits
    mel = mel_filters(STFT, BANDS) @ np.abs(librosa.stft(samples, n_fft=STFT, hop_length=HOP)) ** 2
    flux = librosa.onset.onset_strength(
        S=librosa.power_to_db(mel), sr=SAMPLE_RATE, n_fft=STFT, hop_length=HOP
    )
    return np.log1p(flux[STFT // HOP :].astype(np.float64))


def autocorrelation(onsets: Float[np.ndarray, " frame"]) -> Float[np.ndarray, " lag"]:
    """Autocorrelation of the deviation from the mean; 1 at lag 0, corrected for the shrinking overlap."""
    num = len(onsets)
    spectrum = np.fft.rfft(onsets - onsets.mean(), 2 * num)
    raw = np.fft.irfft(np.abs(spectrum) ** 2)[:num]
    return raw / max(raw[0], 1e-9) * num / (num - np.arange(num))


def tempo_deviation(onsets: Float[np.ndarray, " frame"], period: int) -> float:
    """Mean relative deviation of the local periods from the global one; local ones lie within 15 % of it."""
    middle = parabolic_peak(autocorrelation(onsets), period)
    width = round(min(4 * ONSET_FRAMES_PER_SECOND, len(onsets) / 2))
    lags = np.arange(round(0.85 * period), min(round(1.15 * period) + 1, width - 1))
    deviation, weight = [], []
    for start in range(0, len(onsets) - width + 1, round(ONSET_FRAMES_PER_SECOND / 2)):
        correlation = autocorrelation(onsets[start : start + width])
        local = int(lags[correlation[lags].argmax()])
        deviation.append(abs(math.log(parabolic_peak(correlation, local) / middle)))
        weight.append(max(1e-3, correlation[local]))
    return float(np.average(deviation, weights=weight))


def parabolic_peak(values: Float[np.ndarray, " lag"], top: int) -> float:
    """The position of a maximum between lags, from a parabola through the top and its neighbours."""
    left, middle, right = values[top - 1 : top + 2]
    curve = left - 2 * middle + right
    return top + (float(np.clip((left - right) / (2 * curve), -0.5, 0.5)) if curve < 0 else 0.0)
