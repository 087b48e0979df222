"""Features of a clip that several scorers need, each computed once, and helpers of scorers."""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Complex, Float

from diffdpo import audio
from diffdpo.types import Clip, Prompt

T = TypeVar("T")

SAMPLE_RATE = 22_050
"""Sample rate of features, in Hz: enough for pitch, rhythm and form, and librosa's default."""
EMPTY_PROMPT = Prompt(id="empty")
"""The prompt of a clip that is scored without one."""


class ClipFeatures:
    """A canonical clip with a cache of what scorers compute from it.

    The engine makes one for each clip and each window, and passes it to all scorers that share features.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self._values: dict[Hashable, Any] = {}

    def get(self, compute: Callable[..., T], *args: Hashable) -> T:
        """The value of `compute(self, *args)`, cached by function and arguments. Callers must not change it."""
        key = (compute, *args)
        if key not in self._values:
            self._values[key] = compute(self, *args)
        return self._values[key]


def mono(
    features: ClipFeatures, sample_rate: int = SAMPLE_RATE, at_least_s: float = 1.0
) -> Float[np.ndarray, " sample"]:
    """The mean of the channels at `sample_rate`; shorter clips are filled up with silence."""
    samples = features.get(_mono, sample_rate)
    return np.pad(samples, (0, max(0, int(at_least_s * sample_rate) - len(samples))))


def _mono(features: ClipFeatures, sample_rate: int) -> Float[np.ndarray, " sample"]:
    clip = features.clip
    mean = clip.samples.mean(0, keepdims=True).astype(np.float32)
    return audio.resample(Clip(samples=mean, sample_rate=clip.sample_rate), sample_rate).samples[0]


def magnitudes(
    features: ClipFeatures, n_fft: int, hop: int, at_least_s: float = 1.0
) -> Float[np.ndarray, "bin frame"]:
    """Magnitudes of the short-time Fourier transform of the mono sound at SAMPLE_RATE, cached."""
    length = max(len(features.get(_mono, SAMPLE_RATE)), int(at_least_s * SAMPLE_RATE))
    return features.get(_magnitudes, n_fft, hop, length)


def _magnitudes(features: ClipFeatures, n_fft: int, hop: int, length: int) -> Float[np.ndarray, "bin frame"]:
    samples = features.get(_mono, SAMPLE_RATE)
    return np.abs(stft(np.pad(samples, (0, length - len(samples))), n_fft, hop))


def stft(
    samples: Float[np.ndarray, "*channel sample"], n_fft: int, hop: int, window: str = "hann"
) -> Complex[np.ndarray, "*channel bin frame"]:
    """The short-time Fourier transform as `librosa.stft` defines it, at a third of its cost.

    Frames are centred on every `hop`-th sample, with zeros outside of the clip; `window` is "hann" or "ones".
    """
    import torch

    weights = torch.hann_window(n_fft, dtype=torch.float64) if window == "hann" else torch.ones(n_fft)
    frames = torch.stft(
        torch.from_numpy(samples),
        n_fft,
        hop,
        window=weights.float(),
        pad_mode="constant",
        return_complex=True,
    )
    return frames.numpy()


@cache
def mel_filters(n_fft: int, num: int) -> Float[np.ndarray, "band bin"]:
    """Slaney's mel bands at SAMPLE_RATE, as librosa makes them."""
    import librosa

    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=n_fft, n_mels=num)


def score_each(
    clips: Sequence[Clip], score: Callable[[ClipFeatures], Sequence[float]], num_axes: int
) -> Float[np.ndarray, "clip axis"]:
    """The values of clips, one row a clip; each is computed alone, so no clip changes another's values."""
    rows = [score(ClipFeatures(clip)) for clip in clips]
    return np.array(rows, dtype=np.float64).reshape(len(clips), num_axes)


def score_each_with_prompt(
    clips: Sequence[Clip],
    prompts: Sequence[Prompt] | None,
    score: Callable[[ClipFeatures, Prompt], Sequence[float]],
    num_axes: int = 1,
) -> Float[np.ndarray, "clip axis"]:
    """The values of clips, one row a clip, each for its own prompt; without prompts, for an empty one."""
    per_clip = [EMPTY_PROMPT] * len(clips) if prompts is None else prompts
    rows = [score(ClipFeatures(clip), prompt) for clip, prompt in zip(clips, per_clip, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(clips), num_axes)


def range_score(value: float, low: float, high: float, soft_low: float, soft_high: float) -> float:
    """1 inside [low, high], one half at `soft_low` below it and `soft_high` above: neither too little nor too much.

    The flanks fall as 1 / (1 + distance²), never to 0: what is far off can still get better or worse.
    """
    distance = (low - value) / soft_low if value < low else max(0.0, value - high) / soft_high
    return 1 / (1 + distance**2)


def clip_run_ratio(samples: Float[np.ndarray, "channel sample"], shortest: int = 3) -> float:
    """Share of samples in runs of `shortest` or more at .999 of their channel's peak, or above.

    A wave that is cut off stays at its highest value for a while; a healthy one only passes by.
    """
    return sum(_in_runs(channel, shortest) for channel in samples) / samples.size


def _in_runs(samples: Float[np.ndarray, " sample"], shortest: int) -> int:
    """Number of samples of a channel in runs of at least `shortest` samples at its peak, of one sign each."""
    size = np.abs(samples)
    places = np.flatnonzero((size >= 0.999 * size.max()) & (size > 0))
    ends = (np.diff(places) > 1) | (np.diff(np.signbit(samples[places])))
    lengths = np.diff([0, *np.flatnonzero(ends) + 1, len(places)])
    return int(lengths[lengths >= shortest].sum())
