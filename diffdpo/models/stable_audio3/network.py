"""The diffusion transformer of Stable Audio 3 (arXiv 2605.17991): diffusers' layers, with padding hidden.

Predicts noise - song at x = (1 - t) song + t noise, as `diffdpo.flow` does. Learned memory tokens stand before the
frames. The text context has a fixed number of tokens; a learned vector stands where a prompt has none, and all of
them are attended to, as published. Known frames of in-painting enter every block: a channel that is 1 where a frame
is kept, beside its latents.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableAudio3DiTModel as DiffusersDiT
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.transformers.transformer_stable_audio3 import (
    StableAudio3SelfAttnProcessor,
    _apply_rotary_partial,
)
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffdpo.flow import Latents, Times, mask_from_frames
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

ROPE_BASE = 10_000.0
KeyMask = Bool[Tensor, "batch 1 1 key"] | None
"""The keys that self-attention sees; None where no song has padding."""


class MaskedSelfAttention(StableAudio3SelfAttnProcessor):
    """Self-attention, differential or plain, that does not see padding.

    The mask comes with the rotation, as an argument: an attribute would be another batch's when a checkpointed
    block runs again.
    """

    def __call__(self, attn: Any, hidden_states: Tensor, rope: tuple[Tensor, KeyMask]) -> Tensor:
        angles, visible = rope
        maps = 2 if attn.use_differential else 1
        parts = attn.to_qkv(hidden_states).chunk(2 * maps + 1, dim=-1)
        *qk, value = (part.unflatten(-1, (attn.heads, attn.dim_heads)) for part in parts)
        value = share_heads(value.transpose(1, 2))
        outputs = []
        for q, k in zip(qk[:maps], qk[maps:], strict=True):
            query, key = (
                share_heads(_apply_rotary_partial(norm(x), angles).transpose(1, 2))
                for norm, x in ((attn.q_norm, q), (attn.k_norm, k))
            )
            outputs.append(F.scaled_dot_product_attention(query, key, value, attn_mask=visible))
        out = outputs[0] - outputs[1] if maps == 2 else outputs[0]
        return attn.to_out(share_frames(out, attn.heads).transpose(1, 2).flatten(2, 3))


class LocalProjection(nn.Sequential):
    """The in-painting channels of a block. The last channel is 0 in songs that have no such input at all, as in
    diffusers' text-to-audio pipeline; the original has it always."""

    def forward(self, local: Float[Tensor, "batch frame _"]) -> Float[Tensor, "batch frame dim"]:
        return super().forward(local[..., :-1]) * local[..., -1:]


class StableAudio3DiTModel(DiffusersDiT, PeftAdapterMixin):
    """Diffusers' network under its own name, with the same weights and a forward that hides padding."""

    _no_split_modules = ("StableAudio3DiTBlock",)
    _repeated_blocks = ("StableAudio3DiTBlock",)

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers writes each argument into config.json
        self,
        io_channels: int = 256,
        patch_size: int = 1,
        embed_dim: int = 1536,
        depth: int = 24,
        num_heads: int = 24,
        cond_token_dim: int = 768,
        global_cond_dim: int = 768,
        local_add_cond_dim: int = 257,
        timestep_features_dim: int = 256,
        ff_mult: float = 4.0,
        num_memory_tokens: int = 64,
        use_differential_attention: bool = True,
    ) -> None:
        if patch_size != 1:
            raise ValueError(f"patch_size={patch_size}: in-painting needs frames of their own, patch_size=1")
        if local_add_cond_dim != io_channels + 1:
            raise ValueError(f"local_add_cond_dim={local_add_cond_dim} must be io_channels={io_channels} + 1")
        if embed_dim % (4 * num_heads):
            raise ValueError(f"num_heads={num_heads} must split embed_dim={embed_dim} into multiples of four")
        super().__init__(
            io_channels=io_channels,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            cond_token_dim=cond_token_dim,
            global_cond_dim=global_cond_dim,
            local_add_cond_dim=local_add_cond_dim,
            timestep_features_dim=timestep_features_dim,
            ff_mult=ff_mult,
            num_memory_tokens=num_memory_tokens,
            use_differential_attention=use_differential_attention,
        )
        for block in self.transformer_blocks:
            block.self_attn.set_processor(MaskedSelfAttention())
            block.to_local_embed = LocalProjection(*block.to_local_embed)

    def forward(
        self,
        x: Latents,
        t: Times,
        *,
        text: Float[Tensor, "batch token text"],
        text_mask: Bool[Tensor, "batch token"],
        duration: Float[Tensor, "batch duration"],
        local: Float[Tensor, "batch frame local"],
        frames: Int[Tensor, " batch"],
    ) -> Latents:
        """noise - song at (x, t), zero behind the end of each song.

        `text` holds the tokens of prompt and duration, `text_mask` where there are any. `local` holds, for each
        frame, whether it is kept, its latents if it is, and whether the row has this input at all.
        """
        inside = mask_from_frames(frames.to(x.device), x.shape[1])
        time = self.to_timestep_embed(self.timestep_features(t.to(x.device)[:, None]).to(x.dtype))
        modulation = self.global_cond_embedder(self.to_global_embed(duration) + time)
        padding = self.prompt_padding_embedding.to(text.dtype)
        context = self.to_cond_embed(torch.where(text_mask[..., None], text, padding))
        x = x.masked_fill(~inside[..., None], 0)
        local = local.masked_fill(~inside[..., None], 0)
        tokens = self.config.num_memory_tokens
        length = tokens + x.shape[1]
        visible = None
        if host_value(frames.min() + tokens) != padded_length(length):
            visible = mask_from_frames(frames.to(x.device) + tokens, padded_length(length))[:, None, None]
        h, local, count = self._sequence(x, local)
        rope = self._angles(h.shape[1], h.device), visible
        for block in self.transformer_blocks:
            h = self._run(block, h, context, modulation, rope, None, local, count)
        v = self._convolve(self.postprocess_conv, self.proj_out(h[:, count:]))
        return join_frames(v, length - count)[:, tokens - count :].masked_fill(~inside[..., None], 0)

    def _sequence(self, x: Latents, local: Tensor) -> tuple[Tensor, Tensor, int]:
        """Memory tokens and frames, the in-painting channels, and how many of the first have no such channels.

        Where songs are divided, tokens and frames are one sequence; the channels of a token are then zeros, which
        add nothing.
        """
        count = self.config.num_memory_tokens
        is_divided = current_shards() is not None
        if is_divided:
            x, local = (own_frames(F.pad(values, (0, 0, count, 0))) for values in (x, local))
        h = self.proj_in(self._convolve(self.preprocess_conv, x))
        if not count:
            return h, local, 0
        memory = self.memory_tokens.to(h.dtype).expand(len(x), -1, -1)
        if not is_divided:
            return torch.cat([memory, h], 1), local, count
        positions = frame_positions(h.shape[1], h.device)
        memory = memory[:, positions.clamp(max=count - 1)]
        return torch.where(positions[:, None] < count, memory, h), local, 0

    def _convolve(self, convolution: nn.Module, x: Latents) -> Latents:
        """The residual convolution of width one at either end of the network."""
        return convolution(x.transpose(1, 2)).transpose(1, 2) + x

    def _angles(self, length: int, device: torch.device) -> Float[Tensor, "{length} rotated"]:
        """The angles of the rotary embedding in fp32, whatever the precision of the network: in bf16 the positions
        behind 256 could not be told apart."""
        size = self.config.embed_dim // self.config.num_heads // 2
        exponents = torch.arange(0, size, 2, device=device).float() / size
        angles = torch.outer(frame_positions(length, device).float(), 1.0 / ROPE_BASE**exponents)
        return torch.cat([angles, angles], -1)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
