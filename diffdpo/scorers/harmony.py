"""Harmony: is there a key, and does the tuning hold?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import librosa
import numpy as np
from jaxtyping import Float

from diffdpo.encoders.words import MAJOR, MINOR
from diffdpo.scorers.features import SAMPLE_RATE, each, mono
from diffdpo.types import Clip

STFT = 4096
HOP = 1024
BINS_PER_OCTAVE = 36


@dataclass(frozen=True)
class Harmony:
    """Key clarity and steadiness of tuning.

    harmony.key     Highest correlation of the mean chroma (constant-Q, at the clip's own tuning) with the 24
                    key profiles of Krumhansl & Kessler 1982 (algorithm: Krumhansl 1990, ch. 4). The variance
                    of the chroma is raised by `flatness`², because the correlation alone is blind to how
                    flat a chroma is: white noise would get 0.6. In [-1, 1]; silence and noise near 0, songs
                    0.3 to 0.8.
    harmony.tuning  Length of the mean vector of all spectral peaks on the circle of one semitone: 1 when all
                    partials keep one tempered grid from beginning to end, 0 when they lie anywhere. It
                    saturates at `steadiest`, where the steadiest real songs lie. In [0, 1]; a drift of ±50
                    cents takes 2/3.

    How it can be gamed: a drone or one endless triad has a clear key and perfect tuning, so mine it together
    with structure. Percussion and noise music score low without being bad; blues, modal and microtonal music
    score lower than four chords in C. Compare within a prompt only.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("harmony.key", "harmony.tuning")
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 2.0
    weights_hash: ClassVar[str] = ""

    flatness: float = 0.01
    """Standard deviation over pitch classes, each 1/12 on average, below which a chroma counts as flat."""
    steadiest: float = 0.65

    def __post_init__(self) -> None:
        if self.flatness <= 0 or not 0 < self.steadiest <= 1:
            raise ValueError(f"flatness must be positive and steadiest in (0, 1], got {self}")

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return each(clips, self._score, len(self.axes))

    def _score(self, clip: Clip) -> tuple[float, float]:
        samples = mono(clip, at_least_s=2.0)  # the lowest filter of the constant-Q transform is 0.8 s long
        if not samples.any():
            return 0.0, 0.0
        grid = semitone_grid(samples)
        key = key_clarity(mean_chroma(samples, np.angle(grid) / (2 * np.pi)), self.flatness)
        return key, min(1.0, abs(grid) / self.steadiest)


def semitone_grid(samples: Float[np.ndarray, " sample"], floor: float = 0.1) -> complex:
    """Mean of exp(2πi · semitones from A440) over the spectral peaks of all frames, weighted by magnitude.

    Its angle is the tuning, its length says how steady that is. Peaks lie between 80 and 2,000 Hz, refined
    by a parabola through the log magnitudes, and reach `floor` of the loudest bin of their frame.
    """
    spectrum = np.abs(librosa.stft(samples, n_fft=STFT, hop_length=HOP))
    below, here, above = spectrum[:-2], spectrum[1:-1], spectrum[2:]
    rows, columns = np.nonzero(
        (here > below) & (here >= above) & (here > floor * spectrum.max(0, keepdims=True)) & (here > 0)
    )
    a, b, c = (np.log(part[rows, columns] + 1e-9) for part in (below, here, above))
    curve = np.minimum(a - 2 * b + c, -1e-9)
    hertz = (rows + 1 + np.clip((a - c) / (2 * curve), -0.5, 0.5)) * SAMPLE_RATE / STFT
    heard = (hertz > 80) & (hertz < 2000)
    weight = here[rows, columns][heard].astype(np.float64)
    if not weight.any():
        return 0j
    semitones = 12 * np.log2(hertz[heard] / 440)
    return complex((weight * np.exp(2j * np.pi * semitones)).sum() / weight.sum())


def mean_chroma(samples: Float[np.ndarray, " sample"], tuning: float) -> Float[np.ndarray, " pitch_class"]:
    """Constant-Q energy of C, C#, … B over the whole clip, summing to 1; `tuning` in semitones from A440."""
    chroma = librosa.feature.chroma_cqt(
        y=samples,
        sr=SAMPLE_RATE,
        hop_length=2 * HOP,
        fmin=librosa.note_to_hz("C2"),
        n_octaves=5,
        bins_per_octave=BINS_PER_OCTAVE,
        tuning=tuning * BINS_PER_OCTAVE / 12,
        norm=None,
    )
    mean = chroma.mean(1, dtype=np.float64)
    return mean / max(mean.sum(), 1e-12)


def key_clarity(chroma: Float[np.ndarray, " pitch_class"], flatness: float) -> float:
    """The best correlation with a key; see `Harmony`."""
    keys = np.array([np.roll(profile, tonic) for profile in (MAJOR, MINOR) for tonic in range(12)])
    keys -= keys.mean(1, keepdims=True)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    deviation = chroma - chroma.mean()
    return float((keys @ deviation).max() / math.sqrt((deviation**2).sum() + 12 * flatness**2))
