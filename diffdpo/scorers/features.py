"""Small helpers that several scorers share."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from diffdpo import audio
from diffdpo.types import Clip, Prompt

SAMPLE_RATE = 22_050
"""Enough for pitch, rhythm and form, and librosa's default."""
EMPTY_PROMPT = Prompt(id="empty")
"""Of a clip that is scored without a prompt."""


def mono(clip: Clip, sample_rate: int = SAMPLE_RATE, at_least_s: float = 1.0) -> Float[np.ndarray, " sample"]:
    """The mean of the channels at `sample_rate`; shorter clips are filled up with silence."""
    mean = clip.samples.mean(0, keepdims=True).astype(np.float32)
    samples = audio.resample(Clip(samples=mean, sample_rate=clip.sample_rate), sample_rate).samples[0]
    return np.pad(samples, (0, max(0, int(at_least_s * sample_rate) - len(samples))))


def score_each(
    clips: Sequence[Clip], score: Callable[[Clip], Sequence[float]], num_axes: int
) -> Float[np.ndarray, "clip axis"]:
    """One row a clip, each computed alone: the rest of the batch changes nothing."""
    return np.array([score(clip) for clip in clips], dtype=np.float64).reshape(len(clips), num_axes)


def score_each_with_prompt(
    clips: Sequence[Clip],
    prompts: Sequence[Prompt] | None,
    score: Callable[[Clip, Prompt], float],
) -> Float[np.ndarray, "clip 1"]:
    """One row a clip, each scored for its own prompt; without prompts, for an empty one."""
    per_clip = [EMPTY_PROMPT] * len(clips) if prompts is None else prompts
    values = [score(clip, prompt) for clip, prompt in zip(clips, per_clip, strict=True)]
    return np.array(values, dtype=np.float64).reshape(len(clips), 1)


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
    peak = np.abs(samples).max(1, keepdims=True)
    at_ceiling = np.concatenate([_in_runs(x, shortest) for x in (samples >= 0.999 * peak) & (peak > 0)])
    at_floor = np.concatenate([_in_runs(x, shortest) for x in (samples <= -0.999 * peak) & (peak > 0)])
    return float((at_ceiling | at_floor).mean())


def _in_runs(extreme: Bool[np.ndarray, " sample"], shortest: int) -> Bool[np.ndarray, " sample"]:
    """Marks the members of runs of at least `shortest`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], extreme.astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    change = np.zeros(len(extreme) + 1, np.int64)
    long = ends - starts >= shortest
    np.add.at(change, starts[long], 1)
    np.add.at(change, ends[long], -1)
    return np.cumsum(change[:-1]) > 0
