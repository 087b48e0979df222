"""Texture of a song: how dense, bright and noisy it sounds. No quality, but what correlations may be due to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, magnitudes, mono, score_each
from diffdpo.scorers.notes import NoteHarmony, transcription
from diffdpo.scorers.production import crest_factor
from diffdpo.scorers.rhythm import onset_strength
from diffdpo.types import Clip

TEXTURE_STFT = 2048
TREBLE_HZ = 4_000
NOTE_PROBABILITY = 0.5
"""Probability of a note from which on it is counted."""
SMALLEST = 1e-12


@dataclass(frozen=True)
class Texture:
    """Six covariates that are held constant where axes are compared; more of one is neither better nor worse.

    texture.notes      Notes that sound at a time, as basic-pitch transcribes them: those more likely than not.
    texture.onsets     Mean onset strength: the log-compressed flux of mel bands.
    texture.flatness   Log of the ratio of geometric to arithmetic mean power, mean over moments: 0 is white noise.
    texture.centroid   Octaves above 1 Hz of the mean frequency, weighted by power.
    texture.treble     Share of the power above 4 kHz (below 11 kHz), in dB.
    texture.crest      Peak over root mean square, in dB.

    It is not among the scorers that can be chosen: `diffdpo audit` uses it.
    """

    version: ClassVar[str] = "2"
    axes: ClassVar[tuple[str, ...]] = (
        "texture.notes",
        "texture.onsets",
        "texture.flatness",
        "texture.centroid",
        "texture.treble",
        "texture.crest",
    )
    traits: ClassVar[Mapping[str, str]] = dict.fromkeys(axes, "texture")
    licenses: ClassVar[tuple[str, ...]] = ("Apache-2.0",)
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 1.0

    @property
    def weights_hash(self) -> str:
        return NoteHarmony().weights_hash

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float, ...]:
        if not mono(features).any():
            return (0.0,) * len(self.axes)
        power = magnitudes(features, TEXTURE_STFT, TEXTURE_STFT // 2).astype(np.float64) ** 2
        hertz = np.fft.rfftfreq(TEXTURE_STFT, 1 / SAMPLE_RATE)
        mean = power.mean(1)
        return (
            float((features.get(transcription).note.numpy() > NOTE_PROBABILITY).sum(1).mean()),
            float(features.get(onset_strength).mean()),
            spectral_flatness(power),
            float(np.log2(max(1.0, mean @ hertz / max(SMALLEST, mean.sum())))),
            float(10 * np.log10(max(SMALLEST, mean[hertz >= TREBLE_HZ].sum()) / max(SMALLEST, mean.sum()))),
            crest_factor(features.clip),
        )


def spectral_flatness(power: Float[np.ndarray, "bin frame"]) -> float:
    """Log of geometric over arithmetic mean of the power of each frame, mean over the frames that sound."""
    frames = power[:, power.sum(0) > SMALLEST] + SMALLEST
    if not frames.shape[1]:
        return 0.0
    return float((np.log(frames).mean(0) - np.log(frames.mean(0))).mean())
