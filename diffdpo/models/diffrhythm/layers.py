"""The layers of DiffRhythm's network, with the published names of their parameters."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffdpo.flow import Latents, Times
from diffdpo.models.frame_shards import (
    frame_positions,
    share_frames,
    share_heads,
    song_norm,
    trim_frames,
    widen_frames,
)

HiddenStates = Float[Tensor, "batch frame dim"]
Padding = Bool[Tensor, "batch frame 1"]
"""True behind the end of a song."""
Heads = Float[Tensor, "batch head frame head_dim"]
Visible = Bool[Tensor, "batch 1 1 frame"]
"""False at the keys that attention must not see."""
Rotation = tuple[Float[Tensor, "frame half"], Float[Tensor, "frame half"]]
"""Cosine and sine of every frame's angles."""


def silence(h: Float[Tensor, "batch _ _"], padding: Bool[Tensor, "batch _ _"] | None) -> Tensor:
    """Zeros behind the end of each song: a convolution's outputs are then those of the song on its own."""
    return h if padding is None else h.masked_fill(padding, 0)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def angles(
    positions: Int[Tensor, " frame"], dim: int, theta: float = 10_000.0
) -> Float[Tensor, "frame half"]:
    """position / theta^(2j/dim) for j < dim/2, in fp32 whatever the network's precision."""
    exponents = torch.arange(0, dim, 2, device=positions.device).float() / dim
    return positions.float()[:, None] * (1 / theta**exponents)


def apply_rope(x: Heads, rotation: Rotation) -> Heads:
    """RoPE in LLaMA's layout: channel j turns together with channel j + head_dim/2."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class TimestepEmbedder(nn.Module):
    """A number in [0, 1] as sines and cosines of 1000 times itself, then an MLP."""

    def __init__(self, frequencies: int, dim: int) -> None:
        super().__init__()
        self.sines = frequencies // 2
        self.time_mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time: Times, dtype: torch.dtype) -> Float[Tensor, "batch cond"]:
        # From 1 down to 1/10000, both included, unlike in `angles`. Written as in the original: at a thousand
        # radians the last bit of a frequency is 1e-5 of the embedding.
        steps = torch.arange(self.sines, device=time.device).float()
        frequencies = torch.exp(steps * -(math.log(10_000) / (self.sines - 1)))
        phases = 1000 * at_least_fp32(time)[:, None] * frequencies
        return self.time_mlp(torch.cat([phases.sin(), phases.cos()], dim=-1).to(dtype))


class GRN(nn.Module):
    """Global response normalisation (ConvNeXt V2) with the norm over time: it depends on the whole song."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, h: HiddenStates) -> HiddenStates:
        strength = song_norm(h)
        share = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (h * share) + self.beta + h


class TextBlock(nn.Module):
    """A ConvNeXt V2 block along time."""

    def __init__(self, dim: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.receptive_frames = kernel_size // 2
        self.dwconv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.grn = GRN(hidden)
        self.pwconv2 = nn.Linear(hidden, dim)

    def forward(self, x: HiddenStates, padding: Padding | None) -> HiddenStates:
        h = self.dwconv(widen_frames(x, self.receptive_frames, 1).transpose(1, 2)).transpose(1, 2)
        h = trim_frames(h, self.receptive_frames, 1)
        h = F.gelu(self.pwconv1(self.norm(h)))
        h = self.pwconv2(self.grn(silence(h, padding)))
        return silence(x + h, padding)


class TextEmbedder(nn.Module):
    """Embeddings of phonemes on the frame axis, their positions, and a few convolutions along time."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim = config["text_dim"]
        self.max_frames = config["max_frames"]
        self.text_embed = nn.Embedding(config["text_num_embeds"] + 1, dim)  # row 0: no phoneme begins here
        self.text_blocks = nn.ModuleList(
            TextBlock(dim, config["text_ff_mult"] * dim, config["text_kernel_size"])
            for _ in range(config["conv_layers"])
        )

    def forward(self, text: Int[Tensor, "batch frame"], padding: Padding | None) -> HiddenStates:
        if padding is not None:
            text = text.masked_fill(padding.squeeze(-1), 0)  # behind the end a token need not even exist
        h = self.text_embed(text)
        # The published table ends at max_frames; later frames share its last row.
        positions = frame_positions(text.shape[1], text.device).clamp(max=self.max_frames - 1)
        phases = angles(positions, h.shape[-1])
        h = silence(h + torch.cat([phases.cos(), phases.sin()], dim=-1).to(h.dtype), padding)
        for block in self.text_blocks:
            h = block(h, padding)
        return h


class ConvPositionEmbedder(nn.Module):
    """Two grouped convolutions along time, Mish behind each."""

    def __init__(self, dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()

        def conv() -> nn.Conv1d:
            return nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups)

        self.receptive_frames = kernel_size // 2
        self.conv1d = nn.Sequential(conv(), nn.Mish(), conv(), nn.Mish())

    def forward(self, h: HiddenStates, padding: Padding | None) -> HiddenStates:
        mask = None if padding is None else padding.transpose(1, 2)
        h = h.transpose(1, 2)
        for conv_and_mish in (self.conv1d[:2], self.conv1d[2:]):
            h = widen_frames(silence(h, mask), self.receptive_frames, 2)
            h = trim_frames(conv_and_mish(h), self.receptive_frames, 2)
        return h.transpose(1, 2)


class InputEmbedder(nn.Module):
    def __init__(self, inputs: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, config["dim"])
        self.conv_pos_embed = ConvPositionEmbedder(
            config["dim"], config["conv_pos_kernel_size"], config["conv_pos_groups"]
        )

    @property
    def splits(self) -> bool:
        """Whether the projection is the plain one: no adapter acts on it."""
        proj: Any = self.proj
        if not hasattr(proj, "base_layer"):
            return type(proj) is nn.Linear
        return set(proj.lora_A).isdisjoint(proj.active_adapters)

    def forward(self, inputs: Float[Tensor, "batch frame inputs"], padding: Padding | None) -> HiddenStates:
        return self.place(self.proj(inputs), padding)

    def place(self, h: HiddenStates, padding: Padding | None) -> HiddenStates:
        return h + self.conv_pos_embed(h, padding)

    def project_static(self, inputs: Float[Tensor, "batch frame part"], first: int) -> HiddenStates:
        """The projection, with the bias, of the inputs from number `first` on, the same at every sampler step."""
        columns = self.proj.weight[:, first : first + inputs.shape[-1]]
        return F.linear(inputs, columns, self.proj.bias)

    def project_dynamic(self, x: Latents, moment: Float[Tensor, "batch cond"]) -> HiddenStates:
        """The projection of the first and the last inputs, which change at every sampler step."""
        weight = self.proj.weight
        offset = F.linear(moment, weight[:, -moment.shape[-1] :])
        return F.linear(x, weight[:, : x.shape[-1]]) + offset[:, None]


class RMSNorm(nn.Module):
    """RMS normalisation as LLaMA rounds it: in fp32, cast back, and only then scaled (torch's scales first)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, h: HiddenStates) -> HiddenStates:
        h_fp32 = at_least_fp32(h)
        h_fp32 = h_fp32 * torch.rsqrt(h_fp32.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * h_fp32.to(h.dtype)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, h: HiddenStates, rotation: Rotation, visible: Visible | None) -> HiddenStates:
        q, k, v = (
            rearrange(proj(h), "batch frame (head dim) -> batch head frame dim", head=self.heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rope(q, rotation), apply_rope(k, rotation)
        q, k, v = share_heads(q), share_heads(k), share_heads(v)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=self.causal)
        h = share_frames(h, self.heads)
        return self.o_proj(rearrange(h, "batch head frame dim -> batch frame (head dim)"))


class MLP(nn.Module):
    """A SwiGLU feed-forward layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, h: HiddenStates) -> HiddenStates:
        return self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class TransformerBlock(nn.Module):
    """A LLaMA layer."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim = config["dim"]
        self.self_attn = SelfAttention(dim, config["num_attention_heads"], config["causal"])
        self.mlp = MLP(dim, config["ff_mult"] * dim)
        self.input_layernorm = RMSNorm(dim, config["norm_eps"])
        self.post_attention_layernorm = RMSNorm(dim, config["norm_eps"])

    def forward(self, h: HiddenStates, rotation: Rotation, visible: Visible | None) -> HiddenStates:
        h = h + self.self_attn(self.input_layernorm(h), rotation, visible)
        return h + self.mlp(self.post_attention_layernorm(h))


class FinalNorm(nn.Module):
    """LayerNorm whose scale and shift come from time and place."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cond_dim, 2 * dim)

    def forward(self, h: HiddenStates, moment: Float[Tensor, "batch cond"]) -> HiddenStates:
        scale, shift = self.linear(F.silu(moment)).chunk(2, dim=-1)
        return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
