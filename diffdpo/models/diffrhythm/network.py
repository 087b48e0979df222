"""The diffusion transformer of DiffRhythm v1.2 (Ning et al. 2025, arXiv:2503.01183), as published.

The lyrics stand on the frame axis: one phoneme a frame, 0 where nothing begins. They enter twice, joined with
the latents channel by channel, and as residuals behind the first half of the layers. Time, style and place in
the song enter through the input projection; apart from the last norm nothing is modulated. The state dict has
the published keys without their `transformer.` prefix, and nothing else. What the original hard-codes is a
field of the config, with the value of v1.2-base (ASLP-lab/DiffRhythm-1_2) as its default.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffdpo.flow import Latents, Times, mask_from_frames

Hidden = Float[Tensor, "batch frame dim"]
Padding = Bool[Tensor, "batch frame 1"]
"""True behind the end of a song."""
Heads = Float[Tensor, "batch head frame head_dim"]
Visible = Bool[Tensor, "batch 1 1 frame"]
"""False at the keys that attention must not see."""
Rotation = tuple[Float[Tensor, "frame half"], Float[Tensor, "frame half"]]
"""Cosine and sine of every frame's angles."""


class Encoded(NamedTuple):
    """All that depends on neither x nor time: a sampler computes it once a song, not once a step."""

    inputs: Float[Tensor, "batch frame inputs"]
    """Audio, lyrics and style, joined for the input projection."""
    residuals: tuple[Float[Tensor, "batch frame dim"], ...]
    """What the lyrics add behind each layer of the first half."""
    place: Float[Tensor, "batch cond"]
    """Start and, if the network knows it, duration."""
    padding: Padding | None


def silence(h: Float[Tensor, "batch _ _"], padding: Bool[Tensor, "batch _ _"] | None) -> Tensor:
    """Zeros behind the end of each song, whatever stood there; a convolution then sees what it sees solo."""
    return h if padding is None else h.masked_fill(padding, 0)


def padding_behind(frames: Int[Tensor, " batch"], text: Int[Tensor, "batch frame"]) -> Padding | None:
    """None if every song fills the batch. `frames` is read on the host: keep it there and no GPU waits."""
    length, ends = text.shape[1], frames.tolist()
    if not all(1 <= end <= length for end in ends):
        raise ValueError(f"frames must be between 1 and the length {length} of the batch, got {ends}")
    if min(ends) == length:
        return None
    return ~rearrange(mask_from_frames(frames.to(text.device), length), "batch frame -> batch frame 1")


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def angles(
    positions: Int[Tensor, " frame"], dim: int, theta: float = 10_000.0
) -> Float[Tensor, "frame half"]:
    """position / theta^(2j/dim) for j < dim/2, in fp32 whatever the network's precision."""
    exponents = torch.arange(0, dim, 2, device=positions.device).float() / dim
    return positions.float()[:, None] * (1 / theta**exponents)


def rotate(x: Heads, rotation: Rotation) -> Heads:
    """RoPE in LLaMA's layout: channel j turns together with channel j + head_dim/2."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class TimestepEmbedding(nn.Module):
    """A number in [0, 1] as sines and cosines of 1000 times itself, then an MLP."""

    def __init__(self, frequencies: int, dim: int) -> None:
        super().__init__()
        self.half = frequencies // 2
        self.time_mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time: Times, dtype: torch.dtype) -> Float[Tensor, "batch cond"]:
        # From 1 down to 1/10000, both included, unlike in `angles`. Written as in the original: at a thousand
        # radians the last bit of a frequency is 1e-5 of the embedding.
        steps = torch.arange(self.half, device=time.device).float()
        frequencies = torch.exp(steps * -(math.log(10_000) / (self.half - 1)))
        phases = 1000 * at_least_fp32(time)[:, None] * frequencies
        return self.time_mlp(torch.cat([phases.sin(), phases.cos()], dim=-1).to(dtype))


class GRN(nn.Module):
    """Global response normalisation (ConvNeXt V2) with the norm over time: it depends on the whole song."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, h: Hidden) -> Hidden:
        strength = h.norm(p=2, dim=1, keepdim=True)
        share = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (h * share) + self.beta + h


class TextBlock(nn.Module):
    """A ConvNeXt V2 block along time."""

    def __init__(self, dim: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.grn = GRN(hidden)
        self.pwconv2 = nn.Linear(hidden, dim)

    def forward(self, x: Hidden, padding: Padding | None) -> Hidden:
        h = self.dwconv(x.transpose(1, 2)).transpose(1, 2)
        h = F.gelu(self.pwconv1(self.norm(h)))
        h = self.pwconv2(self.grn(silence(h, padding)))
        return silence(x + h, padding)


class TextEmbedding(nn.Module):
    """Phonemes on the frame axis, their positions, and a few convolutions that spread them over time."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim = config["text_dim"]
        self.max_frames = config["max_frames"]
        self.text_embed = nn.Embedding(config["text_num_embeds"] + 1, dim)  # row 0: no phoneme begins here
        self.text_blocks = nn.ModuleList(
            TextBlock(dim, config["text_ff_mult"] * dim, config["text_kernel_size"])
            for _ in range(config["conv_layers"])
        )

    def forward(self, text: Int[Tensor, "batch frame"], padding: Padding | None) -> Hidden:
        if padding is not None:
            text = text.masked_fill(padding.squeeze(-1), 0)  # behind the end a token need not even exist
        h = self.text_embed(text)
        # The published table ends at max_frames; later frames share its last row.
        positions = torch.arange(text.shape[1], device=text.device).clamp(max=self.max_frames - 1)
        turns = angles(positions, h.shape[-1])
        h = silence(h + torch.cat([turns.cos(), turns.sin()], dim=-1).to(h.dtype), padding)
        for block in self.text_blocks:
            h = block(h, padding)
        return h


class ConvPositionEmbedding(nn.Module):
    """Two grouped convolutions along time, Mish behind each."""

    def __init__(self, dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()

        def conv() -> nn.Conv1d:
            return nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups)

        self.conv1d = nn.Sequential(conv(), nn.Mish(), conv(), nn.Mish())

    def forward(self, h: Hidden, padding: Padding | None) -> Hidden:
        behind = None if padding is None else padding.transpose(1, 2)
        h = h.transpose(1, 2)
        for conv_and_mish in (self.conv1d[:2], self.conv1d[2:]):
            h = conv_and_mish(silence(h, behind))
        return h.transpose(1, 2)


class InputEmbedding(nn.Module):
    def __init__(self, inputs: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, config["dim"])
        self.conv_pos_embed = ConvPositionEmbedding(
            config["dim"], config["conv_pos_kernel_size"], config["conv_pos_groups"]
        )

    def forward(self, inputs: Float[Tensor, "batch frame inputs"], padding: Padding | None) -> Hidden:
        h = self.proj(inputs)
        return h + self.conv_pos_embed(h, padding)


class RMSNorm(nn.Module):
    """As LLaMA rounds it: normalised in fp32, cast back, and only then scaled (torch's own scales first)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, h: Hidden) -> Hidden:
        wide = at_least_fp32(h)
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.to(h.dtype)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, h: Hidden, rotation: Rotation, visible: Visible | None) -> Hidden:
        q, k, v = (
            rearrange(proj(h), "batch frame (head dim) -> batch head frame dim", head=self.heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, rotation), rotate(k, rotation)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=self.causal)
        return self.o_proj(rearrange(h, "batch head frame dim -> batch frame (head dim)"))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, h: Hidden) -> Hidden:
        return self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class TransformerBlock(nn.Module):
    """A LLaMA layer."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim = config["dim"]
        self.self_attn = Attention(dim, config["num_attention_heads"], config["causal"])
        self.mlp = MLP(dim, config["ff_mult"] * dim)
        self.input_layernorm = RMSNorm(dim, config["norm_eps"])
        self.post_attention_layernorm = RMSNorm(dim, config["norm_eps"])

    def forward(self, h: Hidden, rotation: Rotation, visible: Visible | None) -> Hidden:
        h = h + self.self_attn(self.input_layernorm(h), rotation, visible)
        return h + self.mlp(self.post_attention_layernorm(h))


class FinalNorm(nn.Module):
    """LayerNorm whose scale and shift come from time and place."""

    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cond_dim, 2 * dim)

    def forward(self, h: Hidden, moment: Float[Tensor, "batch cond"]) -> Hidden:
        scale, shift = self.linear(F.silu(moment)).chunk(2, dim=-1)
        return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class DiffRhythmTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the published velocity, v = song - noise, at x = (1 - time) noise + time song.

    So time runs from 0, noise, to 1, the song: the reverse of `diffdpo.flow`, where t = 1 - time and the
    velocity is -v. Whoever calls the network turns it round; checkpoints stay as published.

    There is no dropping in here. A condition is dropped by zeros in its place, which is what the original's
    flags do: text 0 on every frame, style 0, audio 0.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("TransformerBlock",)
    _repeated_blocks = ("TransformerBlock",)

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers writes each argument into config.json
        self,
        dim: int = 2048,
        depth: int = 16,
        num_attention_heads: int = 32,
        ff_mult: int = 4,
        latent_channels: int = 64,
        text_num_embeds: int = 363,  # phonemes, without the filler
        text_dim: int = 512,
        style_dim: int = 512,
        cond_dim: int = 512,  # of time, start and duration
        time_frequencies: int = 256,  # sines and cosines together
        conv_layers: int = 4,
        text_ff_mult: int = 2,
        text_kernel_size: int = 7,
        conv_pos_kernel_size: int = 31,
        conv_pos_groups: int = 16,
        max_frames: int = 2048,  # 95 s; 6144 for 285 s
        duration_embedding: bool = False,  # v1.2-full only
        causal: bool = False,  # v1.0 attended causally; its state dict looks the same
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check(self.config)
        self.gradient_checkpointing = False
        self.time_embed = TimestepEmbedding(time_frequencies, cond_dim)
        self.start_time_embed = TimestepEmbedding(time_frequencies, cond_dim)
        if duration_embedding:
            self.duration_time_embed = TimestepEmbedding(time_frequencies, cond_dim)
        self.text_embed = TextEmbedding(self.config)
        self.input_embed = InputEmbedding(2 * latent_channels + text_dim + style_dim + cond_dim, self.config)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(self.config) for _ in range(depth))
        self.text_fusion_linears = nn.ModuleList(
            nn.Sequential(nn.Linear(text_dim, dim), nn.SiLU()) for _ in range(depth // 2)
        )
        self.norm_out = FinalNorm(dim, cond_dim)
        self.proj_out = nn.Linear(dim, latent_channels)
        for parameter in self.text_fusion_linears.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Latents,
        time: Times | Float[Tensor, ""],
        *,
        text: Int[Tensor, "batch frame"],
        style: Float[Tensor, "batch style"],
        audio: Latents,
        start_time: Times,
        duration: Times | None = None,
        frames: Int[Tensor, " batch"] | None = None,
    ) -> Latents:
        """The velocity at (x, time), zero behind the end of each song.

        `audio` is the context of in-painting (`cond` in the original), zero where the song is to be made.
        `start_time` is where an excerpt begins, as a fraction of its song; `duration` is the song's length in
        units of max_frames. Without `frames` padding is visible to all layers, as published. With `frames` no
        layer sees it and each song comes out as it would alone.
        """
        return self.denoise(x, time, self.encode(text, style, audio, start_time, duration, frames))

    def encode(
        self,
        text: Int[Tensor, "batch frame"],
        style: Float[Tensor, "batch style"],
        audio: Latents,
        start_time: Times,
        duration: Times | None = None,
        frames: Int[Tensor, " batch"] | None = None,
    ) -> Encoded:
        """The half of `forward` that is the same at every step of a sampler."""
        known = self.config.duration_embedding
        if known != (duration is not None):
            given = "a duration is required" if known else "no duration can be given"
            raise ValueError(f"duration_embedding={known}, so {given}")
        padding = None if frames is None else padding_behind(frames, text)
        lyrics, residuals = self.encode_text(text, padding)
        everywhere = repeat(style, "batch style -> batch frame style", frame=text.shape[1])
        inputs = torch.cat([silence(audio, padding), lyrics, everywhere], dim=-1)
        place = self.start_time_embed(start_time, audio.dtype)
        if duration is not None:
            place = place + self.duration_time_embed(duration, audio.dtype)
        return Encoded(inputs, residuals, place, padding)

    def encode_text(
        self, text: Int[Tensor, "batch frame"], padding: Padding | None = None
    ) -> tuple[Float[Tensor, "batch frame text"], tuple[Hidden, ...]]:
        """The lyrics on the frame axis, and what they add behind each layer of the first half."""
        lyrics = self.text_embed(text, padding)
        return lyrics, tuple(self._run(fusion, lyrics) for fusion in self.text_fusion_linears)

    def denoise(self, x: Latents, time: Times | Float[Tensor, ""], encoded: Encoded) -> Latents:
        """The half of `forward` that a sampler repeats."""
        padding = encoded.padding
        moment = self.time_embed(time.expand(len(x)), x.dtype) + encoded.place
        now = repeat(moment, "batch cond -> batch frame cond", frame=x.shape[1])
        # x comes first in the published order, then audio, lyrics, style, moment.
        h = self.input_embed(torch.cat([silence(x, padding), encoded.inputs, now], dim=-1), padding)
        head_dim = self.config.dim // self.config.num_attention_heads
        turns = angles(torch.arange(x.shape[1], device=x.device), head_dim, self.config.rope_theta)
        rotation = turns.cos().to(h.dtype), turns.sin().to(h.dtype)
        # Causally no song sees its padding anyway, and SDPA takes a mask or is_causal, not both.
        masked = padding is not None and not self.config.causal
        visible = ~rearrange(padding, "batch frame 1 -> batch 1 1 frame") if masked else None
        for layer, block in enumerate(self.transformer_blocks):
            h = self._run(block, h, rotation, visible)
            if layer < len(encoded.residuals):
                h = h + encoded.residuals[layer]
        return silence(self.proj_out(self.norm_out(h, moment)), padding)

    def _run(self, module: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, *args)
        return module(*args)


def check(config: Mapping[str, Any]) -> None:
    """A ValueError for sizes from which no network can be built."""
    for name, value in config.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    for name in ("text_kernel_size", "conv_pos_kernel_size"):
        if config[name] % 2 == 0:
            raise ValueError(f"{name} must be odd to keep the length, got {config[name]}")
    for name, least in (("text_dim", 2), ("time_frequencies", 4)):
        if config[name] % 2 or config[name] < least:
            raise ValueError(f"{name} must be even and at least {least}, got {config[name]}")
    dim, heads, groups = config["dim"], config["num_attention_heads"], config["conv_pos_groups"]
    if dim % (2 * heads):
        raise ValueError(f"num_attention_heads={heads} must split dim={dim} into heads of even size")
    if dim % groups:
        raise ValueError(f"conv_pos_groups={groups} must divide dim={dim}")
