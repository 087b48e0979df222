"""Statistics of the tiny codec's latents."""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo import audio
from diffdpo.config_paths import PATH
from diffdpo.errors import CheckpointError, reason
from diffdpo.hub import BUNDLE, sha256_of
from diffdpo.types import Clip

if TYPE_CHECKING:
    from diffdpo.codecs.spectral import SpectralCodec

LAGS = (1, 2, 4, 8, 16)
"""Distances in frames over which movement is measured."""


@dataclass(frozen=True)
class LatentFeatures:
    """Mean and deviation over frames of every channel of the tiny codec's latents, and how much the channel moves
    within 1, 2, 4, 8 and 16 frames (the mean absolute change, over the deviation)."""

    version: ClassVar[str] = "1"
    licenses: ClassVar[tuple[str, ...]] = ("CC-BY-SA-4.0",)

    bundle: str = field(default="", repr=False, metadata=PATH)
    """Folder of the bundle with the codec; the shipped one by default."""

    @property
    def weights_hash(self) -> str:
        files = sorted((self._folder() / "codec").glob("*.*"))
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]:
        import torch

        codec = read_codec(self._folder())
        sound = audio.resample(audio.stereo(clip), codec.config.sample_rate).samples
        latents = codec.encode(torch.from_numpy(np.ascontiguousarray(sound))[None])[0]
        return latent_statistics(latents.double().numpy())

    def _folder(self) -> Path:
        return Path(self.bundle) if self.bundle else BUNDLE


def latent_statistics(latents: Float[np.ndarray, "frame channel"]) -> Float[np.ndarray, " feature"]:
    """Mean, deviation and movement at every lag of each channel, end to end."""
    deviation = latents.std(0)
    parts = [latents.mean(0), deviation]
    for lag in LAGS:
        change = latents[lag:] - latents[:-lag] if len(latents) > lag else np.zeros_like(latents[:1])
        parts.append(np.abs(change).mean(0) / (deviation + 1e-3))
    return np.concatenate(parts)


@cache
def read_codec(bundle: Path) -> "SpectralCodec":
    """The codec in a bundle, loaded once a process. CheckpointError for a folder without one."""
    import torch

    from diffdpo.codecs.spectral import SpectralCodec
    from diffdpo.weight_files import WEIGHTS, check_weights_file

    folder = bundle / "codec"
    for file in ("config.json", WEIGHTS):
        check_weights_file(folder / file)
    try:
        return SpectralCodec.from_pretrained(folder, torch_dtype=torch.float32).eval()
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: no codec ({reason(error)}); copy it again") from None
