"""Sound of a song model through its codec: recordings to latents, and latents to sound, for every kind of codec."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo import audio
from diffdpo.errors import DataError
from diffdpo.sounds import Sound
from diffdpo.types import Clip


@runtime_checkable
class Codec(Protocol):
    """Stereo audio at the model's rate <-> latents."""

    def encode(
        self, audio: Float[Tensor, "batch 2 sample"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frame channel"]: ...

    def decode(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]: ...


@runtime_checkable
class WindowedCodec(Protocol):
    """A codec that reads the song it encodes window by window."""

    def encode_windows(
        self,
        read: Callable[[int, int], Float[Tensor, "batch 2 _"]],
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch frame channel"]: ...


@runtime_checkable
class DifferentiableCodec(Protocol):
    """A codec through whose decoder gradients pass."""

    def decode_with_gradients(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]: ...


def encode_clip(
    codec: Codec | None, clip: Clip, sample_rate: int, generator: torch.Generator | None = None
) -> Float[Tensor, "frame channel"]:
    """The latents of a clip, on the CPU. The clip is brought to the model's rate and to two channels, and keeps its
    level. DataError for a model without a codec."""
    stereo = audio.stereo(audio.resample(clip, sample_rate))
    return require_codec(codec).encode(torch.from_numpy(stereo.samples)[None], generator)[0].cpu()


def encode_slices(codec: Codec | None, sound: Sound, sample_rate: int) -> Float[Tensor, "frame channel"]:
    """`encode_clip` of a sound of any length with a slice in memory at a time; a codec without windows takes the
    sound in one piece."""
    required_codec = require_codec(codec)
    if not isinstance(required_codec, WindowedCodec):
        return encode_clip(codec, sound.clip(), sample_rate)
    stereo = sound.resampled(sample_rate).map(audio.stereo)

    def read(start: int, stop: int) -> Float[Tensor, "1 2 _"]:
        return torch.from_numpy(stereo.read(start, stop))[None]

    return required_codec.encode_windows(read, stereo.length)[0].cpu()


def decode_clip(
    codec: Codec | None, latents: Float[Tensor, "frame channel"], sample_rate: int, first_frame: int = 0
) -> Clip:
    """The sound of latents; `first_frame` is their place in the song. DataError for a model without a codec."""
    samples = require_codec(codec).decode(latents[None].float(), first_frame=first_frame)[0]
    return Clip(samples=samples.cpu().numpy(), sample_rate=sample_rate)


def decode_tensor(
    codec: Codec | None, latents: Float[Tensor, "frame channel"], first_frame: int = 0
) -> Float[Tensor, "2 sample"]:
    """The sound of latents at the model's rate, on the graph of gradients. DataError for a model without a codec,
    or with one that gradients do not pass through."""
    required_codec = require_codec(codec)
    if not isinstance(required_codec, DifferentiableCodec):
        raise DataError("gradients do not pass through this model's codec; choose another model")
    return required_codec.decode_with_gradients(latents[None].float(), first_frame=first_frame)[0]


def require_codec(codec: Codec | None) -> Codec:
    """The codec of a model. DataError for a model without one, or whose codec was freed."""
    if codec is None:
        raise DataError("this model has no codec in memory; it can be trained on latents, not heard")
    return codec
