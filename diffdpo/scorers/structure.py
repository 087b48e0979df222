"""Structure: do things come back, and do they differ in between?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.scorers.features import (
    SAMPLE_RATE,
    ClipFeatures,
    magnitudes,
    mel_filters,
    mono,
    range_score,
    score_each,
)
from diffdpo.types import Clip

STFT, HOP, BANDS = 4096, 2048, 40
FRAME_RATE = SAMPLE_RATE / HOP
SHORTEST_S = 5.0
NEAREST_RETURN_S, FARTHEST_RETURN_S = 1.5, 60.0


@dataclass(frozen=True)
class Structure:
    """Form: the geometric mean of variety and recurrence, each highest in a middle range.

    variety      mean distance between excerpts of 2 s, as a share of that between single moments: is there
                 change beyond the ripple of the surface? A loop of up to 2 s has none, a drone and noise
                 little.
    recurrence   how much smaller the distance between moments a fixed lag apart is at the best lag, of 1.5 s
                 and more, than on average over lags: the darkest stripe of the self-similarity matrix (Foote
                 1999, Goto 2003). Noise and an aimless walk have none, an exact loop has 1.

    Moments are chroma (harmony) and MFCC (timbre, dynamics) of a quarter of a second, on fixed scales.
    structure.form lies in [0, 1]; songs mostly above 0.6, loops and noise below 0.3. It hears bars in a clip
    of 8 to 30 s and sections in whole songs, so compare clips of one length. Clips under 5 s get 0.

    How it can be gamed: a loop of 3 s and more passes for form, and so does alternating between any two
    sounds. Through-composed music scores low without being bad.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("structure.form",)
    traits: ClassVar[Mapping[str, str]] = {"structure.form": "form"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = SHORTEST_S
    weights_hash: ClassVar[str] = ""

    variety: tuple[float, float] = (0.35, 0.85)
    recurrence: tuple[float, float] = (0.25, 0.8)
    """Middle ranges, in which most real excerpts lie."""

    def __post_init__(self) -> None:
        for low, high in (self.variety, self.recurrence):
            if not 0 <= low < high < float("inf"):
                raise ValueError(f"a range needs 0 <= low < high, got {self}")

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        if features.clip.seconds < SHORTEST_S or not mono(features).any():
            return (0.0,)
        frames = features.get(structure_frames)
        change = range_score(variety(frames), *self.variety, soft_low=0.05, soft_high=0.3)
        repetition = range_score(recurrence(frames), *self.recurrence, soft_low=0.08, soft_high=0.3)
        return (math.sqrt(change * repetition),)


def structure_frames(features: ClipFeatures) -> Float[np.ndarray, "frame feature"]:
    """The moments of a clip; harmony takes the spectra in between, too."""
    return moments(magnitudes(features, STFT, HOP // 2)[:, ::2])


def moments(magnitude: Float[np.ndarray, "bin frame"]) -> Float[np.ndarray, "frame feature"]:
    """Chroma and timbre of every frame (93 ms), each on a scale where real music varies by about one."""
    import librosa

    power = magnitude**2
    chroma = chroma_filters() @ power
    chroma = np.sqrt(chroma / np.maximum(chroma.sum(0), 1e-6 * chroma.sum(0).max()))
    mel = mel_filters(STFT, BANDS) @ power
    mfcc = librosa.feature.mfcc(S=librosa.power_to_db(mel, ref=np.max, top_db=80.0), n_mfcc=13)
    mfcc[0] /= 3  # the level, which would rule alone
    return np.concatenate([chroma / 0.13, mfcc / 20]).T


@cache
def chroma_filters() -> Float[np.ndarray, "pitch_class bin"]:
    """The pitch classes at A440, as librosa makes them."""
    import librosa

    return librosa.filters.chroma(sr=SAMPLE_RATE, n_fft=STFT, tuning=0)


def moving_means(
    frames: Float[np.ndarray, "frame feature"], seconds: float, hop_s: float
) -> Float[np.ndarray, "excerpt feature"]:
    """Means over `seconds` of frames, one every `hop_s`."""
    width, hop = (max(1, round(s * FRAME_RATE)) for s in (seconds, hop_s))
    return np.lib.stride_tricks.sliding_window_view(frames, width, axis=0)[::hop].mean(-1)


def variety(frames: Float[np.ndarray, "frame feature"]) -> float:
    """Mean distance between excerpts of 2 s over the mean distance between frames."""
    from scipy.spatial.distance import pdist

    surface = max(pdist(frames[::2]).mean(), 0.05 * math.sqrt(frames.shape[1]))  # a held tone has no surface
    return float(pdist(moving_means(frames, 2.0, 0.5)).mean() / surface)


def recurrence(frames: Float[np.ndarray, "frame feature"]) -> float:
    """1 - distance at the best lag / mean distance over lags. Every lag leaves 2.5 s of overlap at least."""
    short_means = moving_means(frames, 0.25, 0.0)
    nearest = round(NEAREST_RETURN_S * FRAME_RATE)
    farthest = round(min(FARTHEST_RETURN_S * FRAME_RATE, len(short_means) - 2.5 * FRAME_RATE))
    distances = [
        np.linalg.norm(short_means[lag:] - short_means[:-lag], axis=1).mean()
        for lag in range(nearest, farthest)
    ]
    return float(1 - min(distances) / max(np.mean(distances), 1e-6))
