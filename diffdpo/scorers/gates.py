"""Gates: faults that no score makes good. Measured on the raw clip, before `canonical`; never optimised."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from diffdpo import audio
from diffdpo.errors import ConfigError
from diffdpo.registry import closest
from diffdpo.scorers.features import clip_run_ratio
from diffdpo.types import Clip

LIMITS: Mapping[str, tuple[float, float]] = {
    "seconds": (1.0, math.inf),
    "non_finite_ratio": (0.0, 0.0),
    "silence_ratio": (0.0, 0.5),
    "clip_run_ratio": (0.0, 0.001),
    "true_peak_db": (-60.0, 9.0),
    "dc_offset": (0.0, 0.3),
}
"""Lowest and highest passing value of each gate.

Wide enough for the float output of a decoder, which may exceed ±1, and for real songs, whose offset reaches
0.2.
"""

SILENCE_DB = -60.0
"""A frame of 50 ms below this level, in dB of full scale, is silent."""


BLOCK, FILTER_HALF_WIDTH = 64, 8
"""Samples that are oversampled together, and samples on either side that the filter needs."""
FILTER_GAIN = 1.9
"""Oversampling raises no peak by more than this: no phase of its filter has absolute taps that add up to more."""


def gates(clip: Clip) -> dict[str, float]:
    """Faults of a clip, as numbers that are finite whatever the clip holds.

    seconds             length
    non_finite_ratio    share of samples that are NaN or infinite; the other gates take them for 0
    silence_ratio       share of 50 ms frames whose RMS is below -60 dB of full scale in every channel
    clip_run_ratio      share of samples in runs of 3 or more at .999 of their channel's peak, or above
    true_peak_db        highest value after 4x oversampling (ITU-R BS.1770-4, annex 2), in dB of full scale
    dc_offset           largest mean of a channel, as a share of the peak
    """
    finite = np.isfinite(clip.samples)
    samples = (clip.samples if finite.all() else np.where(finite, clip.samples, 0)).astype(
        np.float32, copy=False
    )
    if samples.size == 0:
        samples, finite = np.zeros((1, 1), np.float32), np.ones((1, 1), bool)
    scale = float(np.abs(samples).max()) or 1.0
    unit = samples / np.float32(scale)  # huge values must not overflow below
    return {
        "seconds": clip.seconds,
        "non_finite_ratio": 1 - float(finite.mean()),
        "silence_ratio": _silence_ratio(unit, clip.sample_rate, SILENCE_DB - _db(scale)),
        "clip_run_ratio": clip_run_ratio(unit),
        "true_peak_db": _db(scale) + _true_peak_db(unit),
        "dc_offset": float(np.abs(unit.mean(1, dtype=np.float64)).max()),
    }


def failures(values: Mapping[str, float], limits: Mapping[str, tuple[float, float]] = LIMITS) -> list[str]:
    """The names of the gates that a clip does not pass."""
    for name in limits:
        if name not in values:
            raise ConfigError(
                f"unknown gate {name!r}.{closest(name, values)} Known: {', '.join(sorted(values))}."
            )
    return [name for name, (low, high) in limits.items() if not low <= values[name] <= high]


def passes(values: Mapping[str, float], limits: Mapping[str, tuple[float, float]] = LIMITS) -> bool:
    """Whether every gate that has a limit lies within it."""
    return not failures(values, limits)


def _db(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, 1e-12))


def _silence_ratio(samples: Float[np.ndarray, "channel sample"], rate: int, threshold_db: float) -> float:
    width = min(samples.shape[1], max(1, rate // 20))
    frames = samples[:, : samples.shape[1] // width * width].reshape(samples.shape[0], -1, width)
    rms = np.sqrt((frames.astype(np.float64) ** 2).mean(2)).max(0)
    return float((20 * np.log10(np.maximum(rms, 1e-12)) < threshold_db).mean())


def _true_peak_db(samples: Float[np.ndarray, "channel sample"]) -> float:
    """The highest absolute value of the wave that the samples describe, in dB.

    Only blocks that are loud enough to hold that value are oversampled: the filter gains FILTER_GAIN at most.
    """
    peak, length = float(np.abs(samples).max()), samples.shape[1]
    width = min(BLOCK, length)
    margin = FILTER_HALF_WIDTH
    padded_samples = np.pad(samples, ((0, 0), (margin, margin)))
    views = np.lib.stride_tricks.sliding_window_view(padded_samples, width + 2 * margin, axis=1)
    blocks = views[:, np.minimum(np.arange(0, length, width), length - width)]
    loud = blocks[np.abs(blocks).max(2) * FILTER_GAIN >= peak]
    fine_samples = audio.resample(Clip(samples=loud, sample_rate=1), 4).samples[:, 4 * margin : -4 * margin]
    return _db(max(float(np.abs(fine_samples).max()), peak))
