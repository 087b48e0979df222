"""Typicality of a song under musicnn, a judge: held out of mining."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.errors import DataError
from diffdpo.scorers.features import ClipFeatures, mono, score_each
from diffdpo.types import Clip

REFERENCE = "assets/tiny/musicnn_reference.safetensors"
WINDOW_PATCHES = 3
"""9 s, pooled. The reference is made of such windows, so a long song is judged window by window."""
FARTHEST = 10.0


@dataclass(frozen=True)
class MusicnnTypicality:
    """How close a clip's musicnn embedding lies to those of real music.

    musicnn.typicality  Minus the Mahalanobis distance to a Gaussian fitted to real songs, divided by
                        sqrt(200): a root mean square z-score over the dimensions. Mean over windows of 9 s.
                        In [-10, 0]; real songs -0.5 to -1.2, white noise -2.3, pure tones below -2.5,
                        silence -10.

    The idea is that of the Fréchet audio distance (Kilgour et al. 2019), for a single clip.

    How it can be gamed: the mean of all songs would get 0, so blandness pays; above -0.5 it means nothing.
    It is nearly insensitive to form, harmony and timing: shuffled seconds, detuning and jitter change nothing. The
    reference is 64 freely licensed game songs; what they do not contain (say, a cappella) is judged
    atypical. It is a diagnosis, an alarm for destroyed sound: it dislikes songs with many clear notes, and puts
    real songs through a codec below generated ones, so no verdict depends on it.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("musicnn.typicality",)
    traits: ClassVar[Mapping[str, str]] = {"musicnn.typicality": "naturalness"}
    judges: ClassVar[tuple[str, ...]] = ()
    licenses: ClassVar[tuple[str, ...]] = ("ISC",)
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 3.0

    @property
    def weights_hash(self) -> str:
        from diffdpo.encoders.musicnn import SHA256

        return hashlib.sha256(_asset() + SHA256.encode()).hexdigest()

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        windows = features.get(embeddings)
        if not len(windows):
            return (-FARTHEST,)
        return (-min(FARTHEST, float(real_songs().distance(windows).mean())),)


@dataclass(frozen=True, kw_only=True)
class EmbeddingGaussian:
    """A Gaussian of low rank: variances along principal axes, one variance for all directions they leave out."""

    mean: Float[np.ndarray, " dim"]
    axes: Float[np.ndarray, "rank dim"]
    variances: Float[np.ndarray, " rank"]
    residual_variance: float

    def distance(self, embeddings: Float[np.ndarray, "window dim"]) -> Float[np.ndarray, " window"]:
        """Root mean square z-score over all dimensions."""
        deviation = embeddings - self.mean
        coordinates = deviation @ self.axes.T
        residual = np.maximum((deviation**2).sum(1) - (coordinates**2).sum(1), 0)
        inside = (coordinates**2 / self.variances).sum(1)
        return np.sqrt((inside + residual / self.residual_variance) / len(self.mean))

    def project(
        self, directions: Float[np.ndarray, "direction dim"]
    ) -> tuple[Float[np.ndarray, " direction"], Float[np.ndarray, " direction"]]:
        """Mean and variance of embedding @ direction."""
        coordinates = directions @ self.axes.T
        residual = np.maximum((directions**2).sum(1) - (coordinates**2).sum(1), 0)
        return directions @ self.mean, (coordinates**2 * self.variances).sum(
            1
        ) + residual * self.residual_variance


def embeddings(features: ClipFeatures) -> Float[np.ndarray, "window dim"]:
    """The embedding of every window of a clip; silence has no windows."""
    import torch

    from diffdpo.encoders import musicnn

    samples = mono(features, musicnn.MUSICNN_SAMPLE_RATE)
    if not samples.any():
        return np.zeros((0, musicnn.EMBEDDING))
    patches = musicnn.pretrained_musicnn().embed(torch.from_numpy(samples)).embedding
    return pool_patches(patches.double().numpy())


def pool_patches(embeddings: Float[np.ndarray, "patch dim"]) -> Float[np.ndarray, "window dim"]:
    """Means over three patches, end to end; a remainder is dropped, a shorter clip is one window."""
    num = len(embeddings) // WINDOW_PATCHES
    if num == 0:
        return embeddings.mean(0, keepdims=True)
    return embeddings[: num * WINDOW_PATCHES].reshape(num, WINDOW_PATCHES, -1).mean(1)


@cache
def _asset() -> bytes:
    try:
        return resources.files("diffdpo").joinpath(REFERENCE).read_bytes()
    except OSError as error:
        raise DataError(f"diffdpo/{REFERENCE} is missing; reinstall diffdpo") from error


@cache
def real_songs() -> EmbeddingGaussian:
    """The Gaussian fitted to the embeddings of real songs."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = {name: array.astype(np.float64) for name, array in load(_asset()).items()}
        return EmbeddingGaussian(
            mean=tensors["mean"],
            axes=tensors["axes"],
            variances=tensors["variances"],
            residual_variance=tensors["rest"].item(),
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"diffdpo/{REFERENCE} is damaged; reinstall diffdpo") from error
