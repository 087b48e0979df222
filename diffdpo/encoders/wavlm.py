"""WavLM (Chen et al. 2022): frames of 20 ms of 16 kHz audio, embedded by every layer of a transformer.

The names of modules and weights are those of the published checkpoints.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffdpo.errors import DataError

WAVLM_SAMPLE_RATE = 16_000


@dataclass(frozen=True, kw_only=True)
class WavLMConfig:
    """Sizes of the network; the defaults are those of WavLM-Base and Base+."""

    conv_layers: tuple[tuple[int, int, int], ...] = ((512, 10, 5), *4 * ((512, 3, 2),), *2 * ((512, 2, 2),))
    """(channels, width, stride) of each convolution; the product of the strides is the hop, 320 samples."""
    layers: int = 12
    dim: int = 768
    feedforward: int = 3072
    heads: int = 12
    position_width: int = 128
    """Width, in frames, of the convolution that encodes positions."""
    position_groups: int = 16
    buckets: int = 320
    """Classes of distance between two frames, for both directions together."""
    max_distance: int = 800
    """Frames from which on all distances are one class."""

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % self.position_groups:
            raise ValueError(f"dim={self.dim} is no multiple of heads={self.heads} or of position_groups")


NAMES = {
    "encoder_layers": "layers",
    "encoder_embed_dim": "dim",
    "encoder_ffn_embed_dim": "feedforward",
    "encoder_attention_heads": "heads",
    "conv_pos": "position_width",
    "conv_pos_groups": "position_groups",
    "num_buckets": "buckets",
    "max_distance": "max_distance",
}
WAVLM_SETTINGS = {
    "extractor_mode": "default",
    "conv_bias": False,
    "layer_norm_first": False,
    "activation_fn": "gelu",
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "normalize": False,
}
"""What is built here knows these values only; WavLM-Large has others. All other keys matter to training alone."""


def published_config(published: Mapping[str, Any]) -> WavLMConfig:
    """Our sizes for the published names; what is not given is as in WavLM-Base. DataError for another kind."""
    for name, value in WAVLM_SETTINGS.items():
        if published.get(name, value) != value:
            raise DataError(f"WavLM with {name}={published[name]!r} is not supported, only {value!r}")
    sizes: dict[str, Any] = {NAMES[name]: value for name, value in published.items() if name in NAMES}
    if "conv_feature_layers" in published:
        sizes["conv_layers"] = conv_layers(published["conv_feature_layers"])
    try:
        return WavLMConfig(**sizes)
    except (TypeError, ValueError) as error:
        raise DataError(f"no WavLM has these sizes: {error}") from None


def conv_layers(text: str) -> tuple[tuple[int, int, int], ...]:
    """The published notation: "[(512,10,5)] + [(512,3,2)] * 4"."""
    layers: list[tuple[int, int, int]] = []
    for term in text.split("+"):
        match = re.fullmatch(r"\[\((\d+),(\d+),(\d+)\)\](?:\*(\d+))?", re.sub(r"\s", "", term))
        if match is None:
            raise DataError(f"conv_feature_layers: {term.strip()!r} is not like '[(512,3,2)] * 4'")
        channels, width, stride, times = (int(number or 1) for number in match.groups())
        layers += times * [(channels, width, stride)]
    return tuple(layers)


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Output of WavLM for a batch: the frames of every layer, and which frames are valid."""

    layers: tuple[Float[Tensor, "batch frame dim"], ...]
    """The input of the first transformer layer, then the output of each."""
    valid: Bool[Tensor, "batch frame"]
    """False where a frame lies wholly behind the end; its values mean nothing."""


class WavLM(nn.Module):
    """Convolutions to 50 frames a second, then a transformer with gated relative positions (post-norm)."""

    def __init__(self, config: WavLMConfig) -> None:
        super().__init__()
        channels = config.conv_layers[-1][0]
        self.feature_extractor = FeatureExtractor(config)
        self.layer_norm = nn.LayerNorm(channels)
        self.post_extract_proj = nn.Linear(channels, config.dim) if channels != config.dim else nn.Identity()
        self.encoder = Encoder(config)

    def forward(self, samples: Float[Tensor, "batch sample"], lengths: Int[Tensor, " batch"]) -> Frames:
        """The frames of all layers. Samples behind an item's length are taken for silence.

        The padding is not quite inaudible: the first normalisation runs over the whole width, as published.
        """
        inside = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
        features = self.feature_extractor(samples * inside).transpose(1, 2)
        valid = valid_frames(lengths, samples.shape[1], features.shape[1])
        return Frames(
            layers=self.encoder(self.post_extract_proj(self.layer_norm(features)), valid), valid=valid
        )


def valid_frames(lengths: Int[Tensor, " batch"], samples: int, frames: int) -> Bool[Tensor, "batch frame"]:
    """A frame counts from its first sample on; frames share the samples out evenly, a remainder is dropped."""
    starts = torch.arange(frames, device=lengths.device) * (samples // frames)
    return starts < lengths[:, None]


class FeatureExtractor(nn.Module):
    """Convolutions without bias; behind the first, each channel is normalised over time, so level is lost."""

    def __init__(self, config: WavLMConfig) -> None:
        super().__init__()
        channels = (1, *(layer[0] for layer in config.conv_layers))
        self.conv_layers = nn.ModuleList()
        for i, (out, width, stride) in enumerate(config.conv_layers):
            norm = [nn.GroupNorm(out, out)] if i == 0 else []
            conv = nn.Conv1d(channels[i], out, width, stride, bias=False)
            self.conv_layers.append(nn.Sequential(conv, nn.Identity(), *norm, nn.GELU()))

    def forward(self, samples: Float[Tensor, "batch sample"]) -> Float[Tensor, "batch channel frame"]:
        x = samples[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Positions by convolution, then the layers, which share one table of relative positions."""

    def __init__(self, config: WavLMConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv = nn.Sequential(PositionalConv(config), nn.GELU())
        self.layer_norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList([Layer(config, owns_table=i == 0) for i in range(config.layers)])

    def forward(
        self, x: Float[Tensor, "batch frame dim"], valid: Bool[Tensor, "batch frame"]
    ) -> tuple[Float[Tensor, "batch frame dim"], ...]:
        x = x * valid[..., None]
        x = self.layer_norm(x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        classes = distance_classes(x.shape[1], self.config.buckets, self.config.max_distance, x.device)
        table = self.get_submodule("layers.0.self_attn.relative_attention_bias")
        bias = table(classes).permute(2, 0, 1)
        layers = [x]
        for layer in self.layers:
            layers.append(layer(layers[-1], bias, valid))
        return tuple(layers)


class PositionalConv(nn.Module):
    """A grouped convolution whose weight is stored as direction v and length g for each tap (weight norm)."""

    def __init__(self, config: WavLMConfig) -> None:
        super().__init__()
        self.groups = config.position_groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, config.position_width))
        self.weight_v = nn.Parameter(
            torch.randn(config.dim, config.dim // self.groups, config.position_width) / config.dim
        )
        self.bias = nn.Parameter(torch.zeros(config.dim))

    def forward(self, x: Float[Tensor, "batch dim frame"]) -> Float[Tensor, "batch dim frame"]:
        """As many frames as before: an even width is centred on the later of its two middle taps."""
        length = torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True)
        weight = self.weight_g * self.weight_v / length
        width = weight.shape[2]
        return F.conv1d(x, weight, self.bias, padding=width // 2, groups=self.groups)[..., : x.shape[2]]


class Layer(nn.Module):
    """Attention and a feed-forward network, each added and then normalised."""

    def __init__(self, config: WavLMConfig, owns_table: bool) -> None:
        super().__init__()
        self.self_attn = GatedAttention(config, owns_table)
        self.self_attn_layer_norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.feedforward)
        self.fc2 = nn.Linear(config.feedforward, config.dim)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        x: Float[Tensor, "batch frame dim"],
        bias: Float[Tensor, "head frame frame"],
        valid: Bool[Tensor, "batch frame"],
    ) -> Float[Tensor, "batch frame dim"]:
        x = self.self_attn_layer_norm(x + self.self_attn(x, bias, valid))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class GatedAttention(nn.Module):
    """softmax(q·k / √d + gate · bias): how much distance matters is up to the frame that asks.

    The gate is 2 + u (r a - 1), with u and r between 0 and 1, from the frame's own state, and a learned a.
    """

    def __init__(self, config: WavLMConfig, owns_table: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)
        self.grep_linear = nn.Linear(config.dim // config.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, config.heads, 1, 1))
        if owns_table:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)

    def forward(
        self,
        x: Float[Tensor, "batch frame dim"],
        bias: Float[Tensor, "head frame frame"],
        valid: Bool[Tensor, "batch frame"],
    ) -> Float[Tensor, "batch frame dim"]:
        q, k, v = (self.split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        update, reset = self.gates(x)
        positions = (2 + update * (reset * self.grep_a - 1)) * bias
        mask = positions.masked_fill(~valid[:, None, None], -math.inf)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(rearrange(context, "batch head frame part -> batch frame (head part)"))

    def gates(
        self, x: Float[Tensor, "batch frame dim"]
    ) -> tuple[Float[Tensor, "batch head frame 1"], Float[Tensor, "batch head frame 1"]]:
        """Each gate is the sigmoid of a sum of four of the eight outputs."""
        eight = self.grep_linear(self.split(x))
        four = rearrange(eight, "batch head frame (gate four) -> gate batch head frame four", gate=2)
        update, reset = four.sum(-1, keepdim=True).sigmoid()
        return update, reset

    def split(self, x: Float[Tensor, "batch frame dim"]) -> Float[Tensor, "batch head frame part"]:
        return rearrange(x, "batch frame (head part) -> batch head frame part", head=self.heads)


def distance_classes(
    frames: int, buckets: int, max_distance: int, device: torch.device | None = None
) -> Int[Tensor, "frame frame"]:
    """Row i, column j: the class of the distance j - i (Raffel et al. 2020, as in T5's encoder).

    One half of the classes is for keys at or before the query, the other for those after it. In each half, the
    first half of the classes is for single distances, the rest grows with the logarithm up to `max_distance`.
    """
    half, single = buckets // 2, buckets // 4
    at = torch.arange(frames, device=device)
    offset = at[None] - at[:, None]
    distance = offset.abs()
    growth = torch.log(distance.clamp(min=1).float() / single) / math.log(max_distance / single)
    log_bucket = (single + (growth * (half - single)).long()).clamp(max=half - 1)
    return torch.where(distance < single, distance, log_bucket) + half * (offset > 0)
