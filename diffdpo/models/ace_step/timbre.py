"""The timbre reference of ACE-Step 1.5: excerpts of a recording."""

import math

import numpy as np

from diffdpo import audio
from diffdpo.types import Clip

REFERENCE_S, EXCERPT_S = 30, 10
"""Seconds of a timbre reference, and of each of the three excerpts that it is made of."""


def reference_excerpts(clip: Clip) -> Clip:
    """A timbre reference of 30 seconds: the beginning, the middle and the end, a short recording repeated."""
    samples, rate = audio.stereo(clip).samples, clip.sample_rate
    if samples.shape[1] < REFERENCE_S * rate:
        samples = np.tile(samples, math.ceil(REFERENCE_S * rate / max(1, samples.shape[1])))
    total, size = samples.shape[1], EXCERPT_S * rate
    starts = (0, total // 3, max(total - size, 0))
    return Clip(samples=np.concatenate([samples[:, s : s + size] for s in starts], 1), sample_rate=rate)
