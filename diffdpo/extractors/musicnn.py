"""The penultimate layer of musicnn as features."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.extractors.base import mono_at
from diffdpo.types import Clip


@dataclass(frozen=True)
class MusicnnFeatures:
    """Mean over patches of 3 s of musicnn's embedding, and its deviation over them."""

    version: ClassVar[str] = "1"
    licenses: ClassVar[tuple[str, ...]] = ("ISC",)

    @property
    def weights_hash(self) -> str:
        from diffdpo.encoders.musicnn import SHA256

        return SHA256

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]:
        import torch

        from diffdpo.encoders import musicnn

        samples = torch.from_numpy(mono_at(clip, musicnn.MUSICNN_SAMPLE_RATE))
        patches = musicnn.pretrained_musicnn().embed(samples).embedding.double().numpy()
        return np.concatenate([patches.mean(0), patches.std(0)])
