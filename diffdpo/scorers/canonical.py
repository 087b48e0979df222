"""The canonical form of a clip, which every scorer gets: -14 LUFS, so that no score rises with level."""

import numpy as np

from diffdpo import audio
from diffdpo.errors import DataError
from diffdpo.types import Clip

TARGET_LUFS = -14.0
VERSION = "1"
"""Part of the cache key of scores: raise it whenever canonical clips change."""


def canonical(clip: Clip) -> Clip:
    """At most two channels at -14 LUFS (ITU-R BS.1770-4) without offset, at their own sample rate.

    Whatever is below -70 LUFS, the standard's own gate, is silence and comes back as zeros: all scorers then
    give their lowest score, and `gates` reports it. Peaks may exceed ±1. A limiter here would treat loud and
    quiet versions of one song differently.
    """
    if not np.isfinite(clip.samples).all():
        raise DataError("a clip holds samples that are not numbers; `gates` finds such clips before scoring")
    if clip.samples.shape[0] > 2:
        clip = audio.stereo(clip)
    if clip.samples.shape[1]:
        offset = clip.samples.mean(1, keepdims=True, dtype=np.float64)
        centred_samples = np.subtract(
            clip.samples, offset, out=np.empty_like(clip.samples), casting="same_kind"
        )
        clip = Clip(samples=centred_samples, sample_rate=clip.sample_rate)
    level = audio.loudness(clip) if clip.samples.any() else -np.inf
    if not level > audio.SILENCE_LUFS:
        return Clip(samples=np.zeros_like(clip.samples), sample_rate=clip.sample_rate)
    gain = np.float32(10 ** ((TARGET_LUFS - level) / 20))
    return Clip(samples=clip.samples * gain, sample_rate=clip.sample_rate)
