"""Attention in chunks, as in the autoencoder of Stable Audio 3 small (SAME-S); diffusers has sliding windows only.

The first half of the layers of a block attends inside chunks of the sequence, the other half inside chunks that
begin in the middle of those. The seeded noise that the original adds while decoding is left out: a song always
sounds alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderSAME
from diffusers.models.autoencoders.autoencoder_same import SAMETransformerResamplingBlock
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import weight_norm


@dataclass(frozen=True, kw_only=True)
class ChunkedAttention:
    """How an autoencoder attends in chunks."""

    size: int = 32
    """Fine frames of a chunk: those before the encoder's block, behind the decoder's."""
    midpoint_shift: bool = True
    """Whether the second half of the layers has chunks shifted by half of one."""
    decoder_kernel: int = 3
    """Width of the convolution behind the decoder's block."""

    def check(self, strides: Iterable[int]) -> None:
        """ValueError where chunks are not whole segments on either side of every shift."""
        for stride in strides:
            if self.size % (2 * stride if self.midpoint_shift else stride):
                raise ValueError(f"chunk_size={self.size} is no even number of segments of {stride}")


class ChunkedResamplingBlock(SAMETransformerResamplingBlock):
    """A resampling block of diffusers whose layers attend in chunks."""

    attention = ChunkedAttention()

    def forward(self, x: Float[Tensor, "batch channel place"]) -> Float[Tensor, "batch out _"]:
        """The block on the whole sequence, padded with zeros to whole chunks and cut again."""
        encodes, stride, size = self.mode == "encoder", self.stride, self.attention.size
        length = x.shape[-1]
        x = F.pad(x, (0, -length % (size if encodes else size // stride)))
        if encodes:
            x = self.mapping(x)
        segments = x.transpose(1, 2).unflatten(1, (-1, stride if encodes else 1))
        count = 1 if encodes else stride
        tokens = self.new_tokens[:, :, None].expand(*segments.shape[:2], count, -1)
        h = torch.cat([segments, tokens], 2).flatten(1, 2)
        chunk = size + size // stride
        half = len(self.transformers) // 2 if self.attention.midpoint_shift else len(self.transformers)
        h = self._attend(h, self.transformers[:half], chunk)
        if self.attention.midpoint_shift:
            edge = chunk // 2  # the ends are half chunks: filled with a copy of themselves
            h = torch.cat([h[:, :edge], h, h[:, -edge:]], 1)
            h = self._attend(h, self.transformers[half:], chunk)[:, edge:-edge]
        x = h.unflatten(1, (-1, stride + 1))[:, :, -count:].flatten(1, 2).transpose(1, 2)
        if encodes:
            return x[..., : -(-length // stride)]
        return self.mapping(x)[..., : length * stride]

    def _attend(
        self, h: Float[Tensor, "batch place dim"], layers: nn.ModuleList, chunk: int
    ) -> Float[Tensor, "batch place dim"]:
        chunks = h.reshape(-1, chunk, h.shape[-1])
        for layer in layers:
            chunks = layer(chunks)
        return chunks.reshape(h.shape)


def chunk_attention(module: AutoencoderSAME, attention: ChunkedAttention) -> None:
    """Let all blocks of an autoencoder attend in chunks, in place; ValueError for chunks of no whole segments."""
    attention.check(module.config.encoder_strides)
    for block in (*module.encoder.blocks, *module.decoder.blocks):
        block.__class__ = ChunkedResamplingBlock
        block.attention = attention
    kernel = attention.decoder_kernel
    for block in module.decoder.blocks:
        if isinstance(block.mapping, nn.Conv1d):
            convolution = nn.Conv1d(block.in_channels, block.out_channels, kernel, padding=kernel // 2)
            block.mapping = weight_norm(convolution)
