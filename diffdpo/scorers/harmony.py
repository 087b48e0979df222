"""Harmony: is there a key, do tones that sound together fit, and does the tuning hold?"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from diffdpo.checks import check_range
from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, magnitudes, mono, score_each, stft
from diffdpo.types import Clip

HARMONY_STFT = 4096
CHROMA_HOP = 1024
OCTAVES = 5
BINS_PER_OCTAVE = 36
LOUD = 0.1
"""A spectral peak counts if it reaches this share of the loudest bin of its frame."""
CONSONANCE_RANKS = (1.0, -1.0, -0.4, 0.0, 0.4, 0.6, -0.2, 0.8, 0.2, 0.4, -0.4, -0.8, 1.0)
"""How consonant listeners find 0 to 12 semitones: ranks gathered by Schwartz, Howe & Purves 2003."""
QUARTER_TONE = -1.0
"""How consonant an interval midway between two of those is."""


@dataclass(frozen=True)
class Harmony:
    """Key clarity, consonance over time and steadiness of tuning.

    harmony.key     Highest correlation of the mean chroma (constant-Q, at the clip's own tuning) with the 24
                    key profiles of Krumhansl & Kessler 1982 (algorithm: Krumhansl 1990, ch. 4). The variance
                    of the chroma is raised by `flatness`², because the correlation alone is blind to how
                    flat a chroma is: white noise would get 0.6. In [-1, 1]; silence and noise near 0, songs
                    0.3 to 0.8.
    harmony.consonance  Mean, over moments of a fifth of a second, of how consonant the intervals between all
                    spectral peaks that sound together are: overtones of one tone or chord that fuse, against
                    clusters and quarter-tones. Moments and peaks weigh by their power. 0 for intervals that
                    are random, as in noise, 1 for octaves only, -0.36 for nothing but dissonance, and for
                    silence; songs 0.1 to 0.6. A drift of pitch changes no interval and so not this.
    harmony.tuning  Length of the mean vector of all spectral peaks on the circle of one semitone: 1 when all
                    partials keep one tempered grid from beginning to end, 0 when they lie anywhere. It
                    saturates at `steadiest`, where the steadiest real songs lie. In [0, 1]; a drift of ±50
                    cents takes 2/3.

    How it can be gamed: a drone or one endless triad has a clear key, perfect consonance and tuning, so mine it
    together with structure. Percussion and noise music score low without being bad; blues, modal and microtonal
    music score lower than four chords in C. Compare within a prompt only.
    """

    version: ClassVar[str] = "2"
    axes: ClassVar[tuple[str, ...]] = ("harmony.key", "harmony.consonance", "harmony.tuning")
    traits: ClassVar[Mapping[str, str]] = {
        "harmony.key": "harmony",
        "harmony.consonance": "harmony",
        "harmony.tuning": "harmony",
    }
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 2.0
    weights_hash: ClassVar[str] = ""

    flatness: float = 0.01
    """Standard deviation over pitch classes, each 1/12 on average, below which a chroma counts as flat."""
    steadiest: float = 0.65

    def __post_init__(self) -> None:
        check_range(self, "flatness", above=0)
        check_range(self, "steadiest", above=0, high=1)

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float, float, float]:
        # the lowest filter of the constant-Q transform is 0.8 s long
        samples = mono(features, at_least_s=2.0)
        if not samples.any():
            return 0.0, float(LEAST), 0.0
        peaks = spectral_peaks(magnitudes(features, HARMONY_STFT, CHROMA_HOP, at_least_s=2.0).T)
        grid = semitone_grid(peaks)
        key = key_clarity(mean_chroma(samples, np.angle(grid) / (2 * np.pi)), self.flatness)
        return key, consonance(peaks), min(1.0, abs(grid) / self.steadiest)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Spectral peaks of all frames, in the order of the frames."""

    frame: Int[np.ndarray, " peak"]
    semitone: Float[np.ndarray, " peak"]
    """Pitch in semitones from A440."""
    magnitude: Float[np.ndarray, " peak"]


def spectral_peaks(frames: Float[np.ndarray, "frame bin"]) -> Peaks:
    """Loud peaks between 80 and 2,000 Hz, each refined by a parabola through the log magnitudes."""
    left, center, right = frames[:, :-2], frames[:, 1:-1], frames[:, 2:]
    above_floor = center > LOUD * frames.max(1, keepdims=True)
    places, bins = np.nonzero((center > left) & (center >= right) & above_floor & (center > 0))
    a, b, c = (np.log(part[places, bins] + 1e-9) for part in (left, center, right))
    curve = np.minimum(a - 2 * b + c, -1e-9)
    hertz = (bins + 1 + np.clip((a - c) / (2 * curve), -0.5, 0.5)) * SAMPLE_RATE / HARMONY_STFT
    in_range = (hertz > 80) & (hertz < 2000)
    return Peaks(
        frame=places[in_range],
        semitone=12 * np.log2(hertz[in_range] / 440),
        magnitude=center[places, bins][in_range].astype(np.float64),
    )


def semitone_grid(peaks: Peaks) -> complex:
    """Mean of exp(2πi · semitones from A440) over all peaks, weighted by magnitude.

    The angle is the tuning, the length its steadiness.
    """
    if not peaks.magnitude.any():
        return 0j
    turns = np.exp(2j * np.pi * peaks.semitone)
    return complex((peaks.magnitude * turns).sum() / peaks.magnitude.sum())


def _scale() -> tuple[Float[np.ndarray, " place"], Float[np.ndarray, " place"]]:
    """Intervals of an octave in quarter-tones, and their consonance: 1 at both ends, 0 on average."""
    places = np.arange(0, 12.25, 0.5)
    ratings = np.where(places % 1 == 0, np.array(CONSONANCE_RANKS)[places.astype(int)], QUARTER_TONE)
    mean = np.trapezoid(ratings, places) / 12
    return places, (ratings - mean) / (1 - mean)


PLACES, CONSONANCE = _scale()
LEAST = CONSONANCE.min()
"""The consonance of silence."""


def consonance(peaks: Peaks) -> float:
    """Mean of CONSONANCE over the intervals within frames; see `Harmony`. 0 if no two peaks ever sound together.

    What lies within half a semitone is one tone, not two.
    """
    bounds = [*np.flatnonzero(np.diff(peaks.frame, prepend=-1)), len(peaks.frame)]
    total = weight = 0.0
    for begin, end in itertools.pairwise(bounds):
        semitone, magnitude = peaks.semitone[begin:end], peaks.magnitude[begin:end]
        lower, upper = _pairs(int(end - begin))
        interval = np.abs(semitone[lower] - semitone[upper])
        product = magnitude[lower] * magnitude[upper] * (interval > 0.5)
        if product.any():
            power = (magnitude**2).sum()
            total += power * (product * np.interp(interval % 12, PLACES, CONSONANCE)).sum() / product.sum()
            weight += power
    return float(total / weight) if weight else 0.0


@lru_cache(maxsize=256)
def _pairs(count: int) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Indices (i, j), i < j, of all pairs of `count` elements."""
    return np.triu_indices(count, 1)


def mean_chroma(samples: Float[np.ndarray, " sample"], semitones: float) -> Float[np.ndarray, " pitch_class"]:
    """Constant-Q energy of C, C#, … B over the whole clip, summing to 1; tuned `semitones` from A440."""
    import librosa

    lowest = float(librosa.note_to_hz("C2"))
    energy = constant_q(samples, lowest * 2 ** (semitones / 12)).mean(1, dtype=np.float64)
    to_chroma = librosa.filters.cq_to_chroma(len(energy), bins_per_octave=BINS_PER_OCTAVE, fmin=lowest)
    mean = to_chroma @ energy
    return mean / max(mean.sum(), 1e-12)


def constant_q(samples: Float[np.ndarray, " sample"], lowest_hz: float) -> Float[np.ndarray, "bin frame"]:
    """Magnitudes of OCTAVES octaves from `lowest_hz` up (constant-Q transform: Schörkhuber & Klapuri 2010).

    The numbers of `librosa.cqt` at a quarter of its cost: librosa makes the same filters anew for every octave.
    Here those of the highest octave serve all, with the sound at half the rate for each octave below.
    """
    import librosa

    def halve(sound: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " _"]:
        return librosa.resample(sound, orig_sr=2, target_sr=1, res_type="soxr_hq", scale=True)

    rate, hop = SAMPLE_RATE / 2, CHROMA_HOP
    top = lowest_hz * 2 ** (OCTAVES - 1 + np.arange(BINS_PER_OCTAVE) / BINS_PER_OCTAVE)
    filters, lengths = librosa.filters.wavelet(freqs=top, sr=rate)
    n_fft = filters.shape[1]
    bank = np.fft.fft(filters * lengths[:, None] / n_fft)[:, : n_fft // 2 + 1]
    bank = librosa.util.sparsify_rows(bank, quantile=0.01, dtype=np.complex64)
    octaves = []
    for _ in range(OCTAVES):
        samples = halve(samples)
        octaves.append(np.abs(bank @ stft(samples, n_fft, hop, window="ones")) / np.sqrt(lengths)[:, None])
        hop //= 2
    shortest = min(octave.shape[1] for octave in octaves)
    return np.concatenate([octave[:, :shortest] for octave in reversed(octaves)])


def key_clarity(chroma: Float[np.ndarray, " pitch_class"], flatness: float) -> float:
    """The best correlation with a key; see `Harmony`."""
    from diffdpo.encoders.descriptors import MAJOR, MINOR

    keys = np.array([np.roll(profile, tonic) for profile in (MAJOR, MINOR) for tonic in range(12)])
    keys -= keys.mean(1, keepdims=True)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    deviation = chroma - chroma.mean()
    return float((keys @ deviation).max() / math.sqrt((deviation**2).sum() + 12 * flatness**2))
