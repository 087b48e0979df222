"""Beats, a judge: rhythm by a network that tracks beats, held out of mining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, mono, score_each
from diffdpo.scorers.notes import pulse_clarity
from diffdpo.types import Clip

PERIODS_S = np.geomspace(0.3, 1.0, 241)
FRAME_CHUNK = 2000
"""Frames whose phases are in memory at once."""


@dataclass(frozen=True)
class BeatRhythm:
    """How well the beats that BeatNet (Heydari et al. 2021) hears keep one tempo, with a diagnosis.

    beat.coherence  Length of the mean vector of all beat activation on the circle of one period, at the best period
                    of 0.3 to 1 s: 1 for beats that never leave one tempo. In [0, 1]; silence 0.
    beat.pulse      A diagnosis: highest autocorrelation of the activation at a period of 0.25 to 2 s.

    The judge is coherence: the pulse rewards loops.

    How it can be gamed: a click track gets 0.97 of beat.pulse. Rubato and changes of tempo score low without being
    bad, and long songs lower than their excerpts: compare clips of one length.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("beat.coherence", "beat.pulse")
    traits: ClassVar[Mapping[str, str]] = {"beat.coherence": "rhythm", "beat.pulse": "rhythm"}
    judges: ClassVar[tuple[str, ...]] = ("beat.coherence",)
    licenses: ClassVar[tuple[str, ...]] = ("CC-BY-4.0",)
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 4.0

    @property
    def weights_hash(self) -> str:
        from diffdpo.encoders.beat_net import BEATS_WEIGHTS
        from diffdpo.hub import sha256_of

        return sha256_of(BEATS_WEIGHTS)

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float, float]:
        from diffdpo.encoders.beat_net import BEATS_FRAMES_PER_SECOND

        if not mono(features).any():
            return 0.0, 0.0
        activity = features.get(beat_activity)
        return beat_coherence(activity, BEATS_FRAMES_PER_SECOND), pulse_clarity(
            activity, BEATS_FRAMES_PER_SECOND
        )


def beat_activity(features: ClipFeatures) -> Float[np.ndarray, " frame"]:
    """The probability of a beat or downbeat in every frame."""
    import torch

    from diffdpo.encoders.beat_net import BEATS_SAMPLE_RATE, pretrained_beat_networks

    assert BEATS_SAMPLE_RATE == SAMPLE_RATE
    return pretrained_beat_networks().track(torch.from_numpy(mono(features))).double().numpy().sum(1)


def beat_coherence(activity: Float[np.ndarray, " frame"], rate: float) -> float:
    """The largest share of the activity that is in phase with one constant period."""
    total = np.zeros(len(PERIODS_S), np.complex128)
    for begin in range(0, len(activity), FRAME_CHUNK):
        part = activity[begin : begin + FRAME_CHUNK]
        turns = (begin + np.arange(len(part))) / rate / PERIODS_S[:, None]
        total += np.exp(2j * np.pi * turns) @ part
    return float(np.abs(total).max() / max(activity.sum(), 1e-9))
