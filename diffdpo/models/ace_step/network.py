"""The diffusion transformer of ACE-Step 1.5 (arXiv:2602.00744) with padding hidden from every layer.

Layers, weights and their names are diffusers'. What is added is masks: as published, neither frames behind the end
of a song nor the padding of its condition is masked, and a song of a padded batch differs from the song alone by 6
to 33 %. Time and velocity have our orientation already: t = 1 is noise, v = noise - song.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AceStepTransformer1DModel as PublishedTransformer
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffdpo.flow import Latents, mask_from_frames
from diffdpo.models.base import host_value
from diffdpo.models.frame_shards import (
    current_shards,
    frame_positions,
    join_frames,
    own_frames,
    padded_length,
    share_frames,
    share_heads,
)

MeanTimes = tuple[Float[Tensor, "row hidden"], Float[Tensor, "row 6 hidden"]]


class AttentionMasks(NamedTuple):
    """What each kind of attention may see; None where it sees everything."""

    full: Bool[Tensor, "row 1 1 patch"] | None
    sliding: Bool[Tensor, "#row 1 patch patch"]
    cross: Bool[Tensor, "row 1 1 token"] | None


class DividedAttention(AceStepAttnProcessor2_0):
    """Diffusers' self-attention, on all frames of a share of the heads where songs are divided."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if current_shards() is None:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        q, k = (
            apply_rotary_emb(
                norm(project(hidden_states).unflatten(-1, (-1, attn.head_dim))), image_rotary_emb,
                use_real=True, use_real_unbind_dim=-2, sequence_dim=1,
            )
            for norm, project in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k))
        )  # fmt: skip
        v = attn.to_v(hidden_states).unflatten(-1, (-1, attn.head_dim))
        groups = attn.heads // attn.kv_heads
        k, v = (values.repeat_interleave(groups, dim=2) for values in (k, v))
        q, k, v = (share_heads(values.transpose(1, 2)) for values in (q, k, v))
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, scale=attn.scaling)
        h = share_frames(h, attn.heads).transpose(1, 2).flatten(2, 3).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](h))


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
        patches = h.shape[1] // self.patch_size
        h = self._own_patches(h)
        h = self.proj_in_conv(h.transpose(1, 2)).transpose(1, 2)
        condition = self.condition_embedder(encoder)
        masks = attention_masks(
            -(-frames // self.patch_size),
            padded_length(patches),
            tokens,
            encoder.shape[1],
            self.config.sliding_window,
            h.device,
        )
        positions = frame_positions(h.shape[1], h.device).float()
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
        h = self.proj_out_conv(h.transpose(1, 2)).transpose(1, 2)
        return join_frames(h, patches * self.patch_size)[:, :length].masked_fill(~inside, 0)

    def _own_patches(self, h: Float[Tensor, "row frame _"]) -> Float[Tensor, "row part _"]:
        """The frames of this process's patches; whoever divides songs has attention divided as well."""
        if current_shards() is None:
            return h
        for layer in self.layers:
            if not isinstance(layer.self_attn.processor, DividedAttention):
                layer.self_attn.set_processor(DividedAttention())
        return own_frames(h.unflatten(1, (-1, self.patch_size))).flatten(1, 2)

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
