"""MuQ-MuLan (Zhu et al. 2025): music and text in one space of 512 dimensions.

Two towers, each an encoder (MuQ for sound, XLM-RoBERTa for text), a transformer without positions on top of it, the
mean over time and a projection to unit length. The networks are built here from published parameters, by their
published names; only XLM-RoBERTa is taken from transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffdpo.encoders import muq
from diffdpo.encoders.conformer import Hidden
from diffdpo.errors import DataError

MULAN_SAMPLE_RATE = muq.MUQ_SAMPLE_RATE
CLIP_S = 10
CLIP = CLIP_S * MULAN_SAMPLE_RATE
"""Samples of a training clip."""
HEAD_DIM = 64
"""Channels of a head of XLM-RoBERTa's attention, which its parameters do not show."""
MAX_TOKENS = 512
MULAN_TRAINING_PREFIXES = ("audio.aggregator.", "contrast.", "multi_layer_contrastive_learning.")
"""Published parameters that only training needs."""

MuLanState = Mapping[str, Tensor]
Style = Float[Tensor, " style"]


class Norm(nn.Module):
    """LayerNorm without a shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.learned_gamma = nn.Parameter(torch.ones(dim))

    def forward(self, h: Hidden) -> Hidden:
        return F.layer_norm(h, h.shape[-1:], self.learned_gamma)


class LatentAttention(nn.Module):
    """Queries and keys of unit length, times a learned scale and 8."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim, bias=False))

    def forward(self, h: Hidden) -> Hidden:
        h = self.norm(h)
        q, k, v = (
            rearrange(x, "batch frame (head dim) -> batch head frame dim", head=self.heads)
            for x in (self.to_q(h), *self.to_kv(h).chunk(2, dim=-1))
        )
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        h = F.scaled_dot_product_attention(q, k, v, scale=8.0)
        return self.to_out(rearrange(h, "batch head frame dim -> batch frame (head dim)"))


class Gate(nn.Module):
    def forward(self, h: Hidden) -> Float[Tensor, "batch frame half"]:
        value, gate = h.chunk(2, dim=-1)
        return F.gelu(gate) * value


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    LatentAttention(dim, heads, head_dim),
                    nn.Sequential(
                        Norm(dim),
                        nn.Linear(dim, 2 * hidden, bias=False),
                        Gate(),
                        nn.Identity(),  # the place of the published dropout
                        nn.Linear(hidden, dim, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, h: Hidden) -> Hidden:
        for pair in self.layers:
            attention, feed_forward = pair.children()
            h = h + attention(h)
            h = h + feed_forward(h)
        return h


class Top(nn.Module):
    """The network on top of either tower's encoder: frames or tokens to one unit vector."""

    def __init__(self, transformer: Transformer, proj: nn.Module, latents: nn.Linear) -> None:
        super().__init__()
        self.proj = proj
        self.transformer = transformer
        self.latents = latents

    def forward(self, h: Hidden) -> Float[Tensor, "batch style"]:
        return F.normalize(self.latents(self.transformer(self.proj(h)).mean(1)), dim=-1)


@dataclass(frozen=True)
class MuLanAudioTower:
    encoder: muq.MuQ
    top: Top

    @torch.no_grad()
    def clip(self, samples: Float[Tensor, " sample"]) -> Style:
        """The embedding of one clip of ten seconds or less, as a unit vector."""
        return self.top(self.encoder.embed([samples])[0])[0]

    def embed(self, samples: Float[Tensor, " sample"]) -> Style:
        """The embedding of a sound: the mean over clips of ten seconds, as published. Unit length for one clip."""
        return torch.stack([self.clip(part) for part in clips(samples)]).mean(0)


def clips(samples: Float[Tensor, " sample"]) -> list[Float[Tensor, " _"]]:
    """Ten seconds each, end to end; the last goes on with the beginning of the sound, as far as that reaches."""
    parts = list(samples.split(CLIP))
    n_missing = CLIP - len(parts[-1])
    return [*parts[:-1], torch.cat([parts[-1], samples[:n_missing]])]


@dataclass(frozen=True)
class MuLanTextTower:
    encoder: nn.Module
    """transformers' XLMRobertaModel."""
    top: Top

    @torch.no_grad()
    def embed(self, tokens: Sequence[int]) -> Style:
        """The embedding of one text. Never padded: the published transformer attends to padding and averages it."""
        ids: Int[Tensor, "1 token"] = torch.tensor([list(tokens)], device=self.top.latents.weight.device)
        return self.top(self.encoder(input_ids=ids).last_hidden_state)[0]


def audio_tower(state: MuLanState, location: str, layer: int = -1) -> MuLanAudioTower:
    """The audio tower, from published parameters without their first prefix; its input is MuQ's state `layer`.

    DataError names the first parameter that does not fit.
    """
    parameters = subset(state, f"audio.model.{muq.MUQ_PREFIX}")
    depth = muq.depth_of(parameters)
    blocks = layer if layer >= 0 else depth + 1 + layer
    encoder = muq.build(parameters, parameters.__getitem__, location, blocks)
    return MuLanAudioTower(encoder, top(state, "audio", encoder.config.dim, location))


def text_tower(state: MuLanState, location: str) -> MuLanTextTower:
    """The text tower, from published parameters. The encoder's pooling layer, which nothing reads, is left out."""
    try:
        from transformers import XLMRobertaConfig, XLMRobertaModel
    except ImportError as error:
        raise DataError(f"styles from text need transformers ({error}): pip install transformers") from None
    pooler = ("pooler.", "embeddings.position_ids")
    parameters = {n: t for n, t in subset(state, "text.model.").items() if not n.startswith(pooler)}
    try:
        vocabulary, dim = parameters["embeddings.word_embeddings.weight"].shape
        config = XLMRobertaConfig(
            vocab_size=vocabulary,
            hidden_size=dim,
            num_hidden_layers=1
            + max(int(n.split(".")[2]) for n in parameters if n.startswith("encoder.layer.")),
            num_attention_heads=max(1, dim // HEAD_DIM),
            intermediate_size=len(parameters["encoder.layer.0.intermediate.dense.bias"]),
            max_position_embeddings=len(parameters["embeddings.position_embeddings.weight"]),
            type_vocab_size=len(parameters["embeddings.token_type_embeddings.weight"]),
            layer_norm_eps=1e-5,
            pad_token_id=1,
        )
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{location}: not the weights of MuQ-MuLan: no XLM-RoBERTa in them ({error})"
        ) from None
    encoder = XLMRobertaModel(config, add_pooling_layer=False)
    muq.fill(encoder, parameters, location)
    return MuLanTextTower(encoder, top(state, "text", dim, location))


def top(state: MuLanState, side: str, inputs: int, location: str) -> Top:
    parameters = {
        **{f"proj.{name}": tensor for name, tensor in subset(state, f"{side}.proj.").items()},
        **{f"transformer.{name}": tensor for name, tensor in subset(state, f"{side}.transformer.").items()},
        **{f"latents.{name}": tensor for name, tensor in subset(state, f"{side}_to_latents.").items()},
    }
    try:
        styles, dim = parameters["latents.weight"].shape
        head_dim = len(parameters["transformer.layers.0.0.q_scale"])
        heads = len(parameters["transformer.layers.0.0.to_q.weight"]) // head_dim
        hidden = parameters["transformer.layers.0.1.4.weight"].shape[1]
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{location}: not the weights of MuQ-MuLan: {error} is missing or misshapen"
        ) from None
    depth = 1 + max(int(name.split(".")[2]) for name in parameters if name.startswith("transformer.layers."))
    with torch.device("meta"):
        network = Top(
            Transformer(dim, depth, heads, head_dim, hidden),
            nn.Linear(inputs, dim) if "proj.weight" in parameters else nn.Identity(),
            nn.Linear(dim, styles),
        )
    muq.fill(network, parameters, location)
    return network


def subset(state: MuLanState, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def check_names(state: MuLanState, location: str) -> None:
    """DataError for a parameter that belongs to neither tower and is not known to be of training only."""
    prefixes = (
        *(f"{s}.{part}." for s in ("audio", "text") for part in ("model", "proj", "transformer")),
        *MULAN_TRAINING_PREFIXES,
    )
    prefixes += ("audio_to_latents.", "text_to_latents.")
    if strange := sorted(name for name in state if not name.startswith(prefixes)):
        raise DataError(f"{location}: not the weights of MuQ-MuLan: {strange[0]} is none of its parameters")
