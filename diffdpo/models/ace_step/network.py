"""The diffusion transformer of ACE-Step 1.5 (arXiv:2602.00744) with padding hidden from every layer.

Layers, weights and their names are diffusers'. What is added is masks: as published, neither frames behind the end
of a song nor the padding of its condition is masked, and a song of a padded batch differs from the song alone by 6
to 33 %. Time and velocity have our orientation already: t = 1 is noise, v = noise - song.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AceStepTransformer1DModel as PublishedTransformer
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffdpo.flow import Latents, mask_from_frames
from diffdpo.models.base import host_value

MeanTimes = tuple[Float[Tensor, "row hidden"], Float[Tensor, "row 6 hidden"]]


class AttentionMasks(NamedTuple):
    """What each kind of attention may see; None where it sees everything."""

    full: Bool[Tensor, "row 1 1 patch"] | None
    sliding: Bool[Tensor, "#row 1 patch patch"]
    cross: Bool[Tensor, "row 1 1 token"] | None


class AceStepTransformer1DModel(PublishedTransformer):
    """Diffusers' class under its own name, which config.json holds, with a `forward` that knows lengths."""

    _repeated_blocks = ("AceStepTransformerBlock",)
    _no_split_modules = ("AceStepTransformerBlock",)

    def forward(
        self,
        x: Latents,
        t: Float[Tensor, " row"],
        *,
        encoder: Float[Tensor, "row token width"],
        tokens: Int[Tensor, " row"],
        context: Float[Tensor, "row frame context"],
        frames: Int[Tensor, " row"],
    ) -> Latents:
        """noise - song at (x, t), zero behind the end of each song.

        `encoder` is the packed condition, of which `tokens` are valid; `context` the source latents and the chunk
        mask, channel by channel; `frames` the valid frames. `t` is in at least fp32 whatever the precision of x.
        """
        length = x.shape[1]
        inside = mask_from_frames(frames.to(x.device), length)[..., None]
        shift_scale, modulation = self._embed_times(t, x.dtype)
        h = torch.cat([context, x], -1).masked_fill(~inside, 0)
        h = F.pad(h, (0, 0, 0, -length % self.patch_size))  # an odd frame is padded with zeros, as published
        h = self.proj_in_conv(h.transpose(1, 2)).transpose(1, 2)
        condition = self.condition_embedder(encoder)
        masks = attention_masks(
            -(-frames // self.patch_size),
            h.shape[1],
            tokens,
            encoder.shape[1],
            self.config.sliding_window,
            h.device,
        )
        positions = torch.arange(h.shape[1], device=h.device, dtype=torch.float32)
        rotation = tuple(
            wave.to(h.dtype)
            for wave in get_1d_rotary_pos_embed(
                self.head_dim, positions, theta=self.rope_theta, use_real=True, repeat_interleave_real=False
            )
        )
        for layer, kind in zip(self.layers, self.layer_types, strict=True):
            mask = masks.sliding if kind == "sliding_attention" else masks.full
            inputs = (h, rotation, modulation, mask, condition, masks.cross)
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            h = self._gradient_checkpointing_func(layer, *inputs) if recompute else layer(*inputs)
        shift, scale = (self.scale_shift_table + shift_scale[:, None]).chunk(2, 1)
        h = (self.norm_out(h) * (1 + scale) + shift).type_as(h)
        h = self.proj_out_conv(h.transpose(1, 2)).transpose(1, 2)[:, :length]
        return h.masked_fill(~inside, 0)

    def _embed_times(self, t: Float[Tensor, " row"], dtype: torch.dtype) -> MeanTimes:
        """The embedding of t and the modulation of the blocks: the sum of those of t and of t - r, which is 0.

        The sinusoids are taken of t as it comes; only they are rounded to the network's precision.
        """
        (embedding, modulation), (mean_embedding, mean_modulation) = (
            _embed_time(module, values, dtype)
            for module, values in ((self.time_embed, t), (self.time_embed_r, torch.zeros_like(t)))
        )
        return embedding + mean_embedding, modulation + mean_modulation


def _embed_time(module: nn.Module, t: Float[Tensor, " row"], dtype: torch.dtype) -> MeanTimes:
    """`AceStepTimestepEmbedding` with the precision of t kept up to its sinusoids."""
    layers: dict[str, Any] = dict(module.named_children())
    scale: Any = module.scale
    waves = layers["time_sinusoid"](t * scale).to(dtype)
    embedding = layers["linear_2"](layers["act1"](layers["linear_1"](waves)))
    return embedding, layers["time_proj"](layers["act2"](embedding)).unflatten(1, (6, -1))


def attention_masks(
    patches: Int[Tensor, " row"],
    length: int,
    tokens: Int[Tensor, " row"],
    width: int,
    window: int,
    device: torch.device,
) -> AttentionMasks:
    """Masks for songs of `patches` patches and `tokens` tokens in a batch of `length` patches and `width` tokens.

    Patches behind the end see themselves, since attention over nothing is not a number on every device; nobody sees
    them, and their velocity is zero in the end. What needs no mask has none, so that the fast kernels are used.
    """
    places = torch.arange(length, device=device)
    near = ((places[:, None] - places).abs() <= window)[None, None]
    full, sliding, cross = None, near, None
    if host_value(patches.min()) != length:
        full = mask_from_frames(patches.to(device), length)[:, None, None]
        sliding = near & (full | (places[:, None] == places))
    if host_value(tokens.min()) != width:
        cross = mask_from_frames(tokens.to(device), width)[:, None, None]
    return AttentionMasks(full, sliding, cross)
