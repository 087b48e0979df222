"""SAME, the autoencoder of Stable Audio 3: stereo sound and 256 channels at 10.8 frames a second.

A frame depends on few frames around it, since attention reaches one frame further in every layer: songs of any
length are encoded and decoded window by window. The latents are not random: encoding is the same with and without a
generator.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderSAME
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.codecs.same_chunks import ChunkedAttention, chunk_attention
from diffdpo.devices import choose_device
from diffdpo.errors import CheckpointError, reason
from diffdpo.gradient_checkpoints import checkpoint_call
from diffdpo.runs import read_json
from diffdpo.weight_files import WEIGHTS, assign, read_tensors
from diffdpo.windows import Chunks, assemble, chunks_for_context, stream


@dataclass(frozen=True, kw_only=True)
class SameCodec:
    """An AutoencoderSAME that encodes and decodes long songs in windows."""

    module: AutoencoderSAME
    """Moved to the GPU, if there is one, on first use."""
    chunks: Chunks
    alignment: int = 1
    """Windows begin at multiples of so many frames, where attention is in chunks."""

    @property
    def channels(self) -> int:
        return int(self.module.config.latent_dim)

    @property
    def sample_rate(self) -> int:
        return int(self.module.config.sampling_rate)

    @property
    def samples_per_frame(self) -> int:
        return int(self.module.downsampling_ratio)

    def encode(
        self, audio: Float[Tensor, "batch 2 sample"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frame channel"]:
        """Latents of a song; the last frame is padded with silence."""
        return self.encode_windows(lambda start, stop: audio[..., start:stop], audio.shape[-1], generator)

    def encode_windows(
        self,
        read: Callable[[int, int], Float[Tensor, "batch 2 _"]],
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch frame channel"]:
        """`encode` of a song of so many samples that is read window by window: `read(start, stop)`."""
        device, hop = self._place(), self.samples_per_frame
        length = -(-samples // hop)
        total = -(-length // self.alignment) * self.alignment

        @torch.no_grad()
        def run(start: int, stop: int) -> Tensor:
            window = read(min(start * hop, samples), min(stop * hop, samples)).to(device)
            window = F.pad(window, (0, (stop - start) * hop - window.shape[-1]))
            return self.module.encode(window, return_dict=False)[0]

        return assemble(stream(run, total, self.chunks), total)[..., :length].transpose(1, 2)

    def decode(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]:
        """The whole sound, on the CPU. `first_frame`, its place in the song, changes nothing."""
        with torch.no_grad():
            return self.decode_with_gradients(latents, first_frame=first_frame)

    def decode_with_gradients(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]:
        """`decode` that gradients pass through, with the activations of a window in memory."""
        device, hop = self._place(), self.samples_per_frame
        length = latents.shape[1]
        latents = F.pad(latents, (0, 0, 0, -length % self.alignment))
        total = latents.shape[1]

        def synthesise(window: Tensor) -> Tensor:
            return self.module.decode(window.transpose(1, 2).float().to(device), return_dict=False)[0]

        def run(start: int, stop: int) -> Tensor:
            return checkpoint_call(synthesise, latents[:, start:stop])

        sound = assemble(stream(run, total, self.chunks, per_frame=hop), total * hop)
        return sound[..., : length * hop]

    def _place(self) -> torch.device:
        device = choose_device()
        nn.Module.to(self.module, device)
        return device


def build_same(
    config: Mapping[str, Any],
    state: dict[str, Tensor],
    location: str,
    attention: ChunkedAttention | None = None,
) -> SameCodec:
    """A codec from diffusers' configuration and tensors, strictly loaded; CheckpointError where they do not fit.

    `attention` is that of an autoencoder that attends in chunks.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers keeps torch's older weight norm
            module = AutoencoderSAME.from_config(config)
            if attention is not None:
                chunk_attention(module, attention)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{location}: no AutoencoderSAME has such sizes ({reason(error)})") from None
    for name, buffer in list(module.named_buffers()):
        if name not in module.state_dict():  # rotary frequencies follow from the sizes
            owner, _, leaf = name.rpartition(".")
            size = 2 * len(buffer)
            exponents = torch.arange(0, size, 2).float() / size
            module.get_submodule(owner).register_buffer(leaf, 1.0 / 10_000**exponents, persistent=False)
    assign(module, state, location, torch.float32)
    if module.config.audio_channels != 2:
        raise CheckpointError(f"{location}: {module.config.audio_channels} audio channels, expected two")
    receptive = same_receptive_frames(module.config, attention)
    return SameCodec(
        module=module.requires_grad_(False),
        chunks=chunks_for_context(receptive),
        alignment=1 if attention is None else attention.size // module.config.encoder_strides[-1],
    )


def load_same(folder: Path) -> SameCodec:
    """A codec from a folder in diffusers' form: config.json and safetensors."""
    config = read_json(folder / "config.json")
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name != AutoencoderSAME.__name__:
        raise CheckpointError(f"{folder}: not an AutoencoderSAME but {name!r}")
    return build_same(config, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))


def same_receptive_frames(config: Mapping[str, Any], attention: ChunkedAttention | None = None) -> int:
    """Latent frames on either side that a frame depends on, in either direction.

    Attention of a layer reaches `sliding_window` segments, or to the ends of its chunk; a segment is one frame
    of the coarser side of its level.
    """
    frames = 0
    for stride, depth in zip(config["encoder_strides"], config["encoder_transformer_depths"], strict=True):
        reach = depth * config["sliding_window"]
        if attention is not None:
            reach = 2 * attention.size // stride
        frames = -(-frames // stride) + reach
    return int(frames)
