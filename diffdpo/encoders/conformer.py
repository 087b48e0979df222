"""Conformer blocks (Gulati et al. 2020) as MuQ uses them, with the published names of their parameters.

Every layer takes `valid`: which frames exist. What lies behind the end of a clip is then neither attended to nor
convolved, so a clip in a padded batch gets what it gets alone. None: all frames exist.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

Hidden = Float[Tensor, "batch frame dim"]
Valid = Bool[Tensor, "batch frame"] | None
Turns = tuple[Float[Tensor, "frame 1 half"], Float[Tensor, "frame 1 half"]]
"""Cosine and sine of every frame's angles, alike for all heads."""


def attend(q: Hidden, k: Hidden, v: Hidden, heads: int, valid: Valid) -> Hidden:
    """Softmax attention to the frames that exist, in memory that is linear in their number."""
    q, k, v = (rearrange(x, "batch frame (head dim) -> batch head frame dim", head=heads) for x in (q, k, v))
    mask = None if valid is None else valid[:, None, None, :]
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(h, "batch head frame dim -> batch frame (head dim)")


class RotaryPositions(nn.Module):
    """Position j turns channel c by j / 10000^(2c / head_dim)."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = (
            torch.arange(0, head_dim, 2, device="cpu") / head_dim
        )  # on "meta" it would import sympy, 180 MB
        self.register_buffer("inv_freq", 10_000.0**-exponents)

    def forward(self, frames: int) -> Turns:
        positions = torch.arange(frames, device=self.inv_freq.device)
        angles = (positions[:, None] * self.inv_freq)[:, None]
        return angles.cos(), angles.sin()


def rotate(h: Hidden, heads: int, turns: Turns) -> Hidden:
    """RoPE with halves: channel c of a head turns together with channel c + head_dim/2."""
    cos, sin = turns
    first, second = rearrange(h, "b frame (head dim) -> b frame head dim", head=heads).chunk(2, dim=-1)
    rotated_h = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rearrange(rotated_h, "b frame head dim -> b frame (head dim)")


class RotaryAttention(nn.Module):
    """Attention with rotary positions: the input of queries and keys is rotated, the input of values is not."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, h: Hidden, turns: Turns, valid: Valid) -> Hidden:
        rotated_h = rotate(h, self.heads, turns)
        q, k, v = self.linear_q(rotated_h), self.linear_k(rotated_h), self.linear_v(h)
        return self.linear_out(attend(q, k, v, self.heads, valid))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(dim, hidden)
        self.output_dense = nn.Linear(hidden, dim)

    def forward(self, h: Hidden) -> Hidden:
        return self.output_dense(F.silu(self.intermediate_dense(h)))


class ConvolutionModule(nn.Module):
    """A gated linear unit, then a convolution along time with one filter a channel."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(
            dim, dim, kernel_size, padding=(kernel_size - 1) // 2, groups=dim, bias=False
        )
        self.batch_norm = nn.BatchNorm1d(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, h: Hidden, valid: Valid) -> Hidden:
        h = F.glu(self.pointwise_conv1(self.layer_norm(h).transpose(1, 2)), dim=1)
        if valid is not None:
            h = h.masked_fill(~valid[:, None], 0)
        h = F.silu(self.batch_norm(self.depthwise_conv(h)))
        return self.pointwise_conv2(h).transpose(1, 2)


class ConformerBlock(nn.Module):
    """Feed-forward layer at half weight, attention, convolution, feed-forward layer at half weight."""

    def __init__(self, dim: int, hidden: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.ffn1_layer_norm = nn.LayerNorm(dim)
        self.ffn1 = FeedForward(dim, hidden)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = RotaryAttention(dim, heads)
        self.conv_module = ConvolutionModule(dim, kernel_size)
        self.ffn2_layer_norm = nn.LayerNorm(dim)
        self.ffn2 = FeedForward(dim, hidden)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, h: Hidden, turns: Turns, valid: Valid) -> Hidden:
        h = h + 0.5 * self.ffn1(self.ffn1_layer_norm(h))
        h = h + self.self_attn(self.self_attn_layer_norm(h), turns, valid)
        h = h + self.conv_module(h, valid)
        return self.final_layer_norm(h + 0.5 * self.ffn2(self.ffn2_layer_norm(h)))
