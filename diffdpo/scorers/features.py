"""Small helpers that several scorers share."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from diffdpo import audio
from diffdpo.types import Clip

SAMPLE_RATE = 22_050
"""Enough for pitch, rhythm and form, and librosa's default."""


def mono(clip: Clip, sample_rate: int = SAMPLE_RATE, at_least_s: float = 1.0) -> Float[np.ndarray, " sample"]:
    """The mean of the channels at `sample_rate`; shorter clips are filled up with silence."""
    mean = clip.samples.mean(0, keepdims=True).astype(np.float32)
    samples = audio.resample(Clip(samples=mean, sample_rate=clip.sample_rate), sample_rate).samples[0]
    return np.pad(samples, (0, max(0, int(at_least_s * sample_rate) - len(samples))))


def each(
    clips: Sequence[Clip], score: Callable[[Clip], Sequence[float]], num_axes: int
) -> Float[np.ndarray, "clip axis"]:
    """One row a clip, each computed alone: the rest of the batch changes nothing."""
    return np.array([score(clip) for clip in clips], dtype=np.float64).reshape(len(clips), num_axes)


def window(value: float, low: float, high: float, soft_low: float, soft_high: float) -> float:
    """1 inside [low, high], one half where it is left by `soft`: a wish for neither too little nor too much.

    The flanks fall as 1 / (1 + beyond²), never to 0: what is far off can still get better or worse.
    """
    beyond = (low - value) / soft_low if value < low else max(0.0, value - high) / soft_high
    return 1 / (1 + beyond**2)
