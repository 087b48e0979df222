"""What a feature extractor is: a sound in, a vector out; and the windows of a song that it is applied to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffdpo import audio
from diffdpo.checks import check_range
from diffdpo.types import Clip

CropFeatures = Float[np.ndarray, "_ _"]
"""Vectors of the windows of one song, a row a window; lengths differ between extractors."""


@runtime_checkable
class Extractor(Protocol):
    """A frozen dataclass: its fields are its parameters, its call is deterministic.

    It gets a canonical clip that is not silent, and gives a vector whose length depends on nothing but its fields.
    Several threads call it at once, after a first call by one.
    """

    version: ClassVar[str]
    """Part of the cache key: raise it whenever the numbers change."""
    licenses: ClassVar[tuple[str, ...]]
    """Licenses of its weights; reward models inherit them."""

    @property
    def weights_hash(self) -> str:
        """Identity of the weights, part of the cache key."""
        ...

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]: ...


@runtime_checkable
class TextExtractor(Protocol):
    """An Extractor that puts texts into the same space as sounds."""

    def embed_text(self, text: str) -> Float[np.ndarray, " feature"]:
        """The vector of a text; zeros for one that says nothing."""
        ...


@dataclass(frozen=True)
class Crops:
    """The windows of a song that features are computed from."""

    seconds: float = 0.0
    """Length of a window; 0: the whole song is one."""
    count: int = 4
    """Most windows of a song, evenly spread over it."""
    pool: Literal["mean", "rows"] = "mean"
    """Whether a song is the mean over its windows, or each window counts by itself."""

    def __post_init__(self) -> None:
        check_range(self, "seconds", low=0, prefix="crops.")
        check_range(self, "count", low=1, prefix="crops.")

    @property
    def name(self) -> str:
        """Windows in a word, for cache keys: `whole`, or length and number."""
        return f"{self.seconds:g}x{self.count}" if self.seconds else "whole"

    def cut(self, clip: Clip) -> list[Clip]:
        """The windows of a clip; a clip that is not longer than a window is one."""
        length = round(self.seconds * clip.sample_rate)
        room = clip.samples.shape[1] - length
        if not length or room <= 0:
            return [clip]
        count = min(self.count, 1 + room // max(1, length // 2))
        starts = np.linspace(0, room, count).round().astype(int)
        return [
            Clip(samples=clip.samples[:, start : start + length], sample_rate=clip.sample_rate)
            for start in starts
        ]


def extractor_fingerprint(extractor: Extractor) -> str:
    """The hash of all that decides an extractor's numbers: class, version, weights and the values of its fields."""
    text = f"{type(extractor).__qualname__}|{extractor.version}|{extractor.weights_hash}|{extractor!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def extract_crops(extractor: Extractor, clip: Clip, crops: Crops) -> CropFeatures:
    """The vector of every window of a canonical clip; silent windows are left out.

    ValueError for a silent clip.
    """
    windows = [window for window in crops.cut(clip) if window.samples.any()]
    if not windows:
        raise ValueError("a silent sound has no features")
    return np.stack([np.asarray(extractor(window), np.float64) for window in windows])


def song_crops(clip: Clip, extractors: Mapping[str, Extractor], crops: Crops) -> CropFeatures:
    """The features of a canonical clip by all extractors, side by side; one row, or one row a window."""
    return join_features([extract_crops(extractor, clip, crops) for extractor in extractors.values()], crops)


def join_features(parts: Sequence[CropFeatures], crops: Crops) -> CropFeatures:
    """The features of one song by several extractors, side by side, pooled as `crops` says."""
    rows = np.concatenate(list(parts), axis=1)
    return rows.mean(0, keepdims=True) if crops.pool == "mean" else rows


def song_features(
    clips: Sequence[Clip], extractors: Mapping[str, Extractor], crops: Crops | None = None
) -> Float[np.ndarray, "clip feature"]:
    """The features of canonical clips that are not silent: a row a clip, the mean over its windows."""
    windows = crops or Crops()
    return np.stack([song_crops(clip, extractors, windows).mean(0) for clip in clips])


def mono_at(clip: Clip, sample_rate: int) -> Float[np.ndarray, " sample"]:
    """The mean of the channels at a sample rate."""
    mean = clip.samples.mean(0, keepdims=True).astype(np.float32)
    return audio.resample(Clip(samples=mean, sample_rate=clip.sample_rate), sample_rate).samples[0]


def as_vector(tensor: Any) -> Float[np.ndarray, " feature"]:
    """A tensor of one vector as an array in double precision."""
    return tensor.detach().cpu().double().numpy().reshape(-1)
