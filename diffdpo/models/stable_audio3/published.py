"""Stable Audio 3 as its authors released it: one file with all parts under the names of stable-audio-tools.

Names, and the order of the parts of fused projections, are mapped to diffusers'. The functions read names and
shapes of tensors only; what the weights do not show, such as strides, is in the model_config.json beside them.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffdpo.codecs.same_chunks import ChunkedAttention
from diffdpo.errors import CheckpointError
from diffdpo.weight_files import Shapes

CHECKPOINT_FILE, CONFIG_JSON = "model.safetensors", "model_config.json"
NETWORK, CODEC = "model.model.", "pretransform.model."
PADDING = "conditioner.conditioners.prompt.padding_embedding"
DURATION = "conditioner.conditioners.seconds_total.embedder.embedding.1."
DISTILLED = "rf_denoiser"
"""The diffusion_objective of few-step networks; that of the others is rectified_flow."""
NETWORK_NAMES = (
    (r"^transformer\.layers\.", "transformer_blocks."),
    (r"^transformer\.project_(in|out)\.", r"proj_\1."),
    (r"^transformer\.", ""),
    (r"\.ff\.ff\.0\.proj\.", ".ff.proj_in."),
    (r"\.ff\.ff\.2\.", ".ff.proj_out."),
)
CODEC_NAMES = (
    (r"\.pre_norm\.", ".norm_attn."),
    (r"\.self_attn\.", ".attn."),
    (r"\.ff_norm\.", ".norm_ff."),
    (r"\.ff\.ff\.0\.proj\.", ".ff.proj_in."),
    (r"\.ff\.ff\.2\.", ".ff.proj_out."),
    (r"^bottleneck\.scaling_factor$", "bottleneck.scale"),
)
DECODER_OFFSET = 3
"""Layers of the published decoder before its first resampling block."""


@dataclass
class PublishedParts:
    """The tensors of a published file under diffusers' names, part by part."""

    network: dict[str, Tensor] = field(default_factory=dict)
    codec: dict[str, Tensor] = field(default_factory=dict)
    duration: dict[str, Tensor] = field(default_factory=dict)


def split_published(state: dict[str, Tensor], location: str) -> PublishedParts:
    """A published file as parts; `state` is emptied on the way. Text encoders and derived buffers are left out.

    CheckpointError for a file of another model.
    """
    if not any(name.startswith(NETWORK) for name in state):
        raise CheckpointError(f"{location}: no Stable Audio 3: {describe_weights(state)}")
    parts = PublishedParts()
    levels = sum(
        bool(re.fullmatch(rf"{re.escape(CODEC)}encoder\.layers\.\d+\.new_tokens", name)) for name in state
    )
    for name in list(state):
        tensor = state.pop(name)
        if name == PADDING:
            parts.network["prompt_padding_embedding"] = tensor
        elif name.startswith(DURATION):
            parts.duration[f"linear.{name.removeprefix(DURATION)}"] = tensor
        elif name.startswith(NETWORK):
            parts.network[rename(name.removeprefix(NETWORK), NETWORK_NAMES)] = reorder(name, tensor)
        elif name.startswith(CODEC) and not name.endswith(("rope.inv_freq", "noise_scaling_factor")):
            parts.codec[codec_name(name.removeprefix(CODEC), levels)] = reorder(name, tensor)
    return parts


def rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """A name after all substitutions, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def codec_name(name: str, levels: int) -> str:
    """Diffusers' name of an autoencoder's tensor: the layers of published lists are blocks and a projection."""
    if match := re.match(r"(encoder|decoder)\.layers\.(\d+)\.", name):
        side, number = match[1], int(match[2])
        projection = levels + 1 if side == "encoder" else 1
        first = 0 if side == "encoder" else DECODER_OFFSET
        place = f"{side}.proj." if number == projection else f"{side}.blocks.{number - first}."
        name = place + name[match.end() :]
    return rename(name, CODEC_NAMES)


def reorder(name: str, tensor: Tensor) -> Tensor:
    """The rows of a fused projection of differential self-attention: published q, k, v, q2, k2; in diffusers
    q, q2, k, k2, v. Other tensors stay as they are."""
    if not name.endswith("self_attn.to_qkv.weight") or tensor.shape[0] != 5 * tensor.shape[1]:
        return tensor
    q, k, v, q2, k2 = tensor.chunk(5)
    return torch.cat([q, q2, k, k2, v])


PUBLISHED_NAMES = (
    (r"^transformer_blocks\.", "transformer.layers."),
    (r"^proj_(in|out)\.", r"transformer.project_\1."),
    (r"^(memory_tokens$|rotary_pos_emb\.|global_cond_embedder\.)", r"transformer.\1"),
    (r"\.ff\.proj_in\.", ".ff.ff.0.proj."),
    (r"\.ff\.proj_out\.", ".ff.ff.2."),
)


def publish_network(state: Mapping[str, Tensor], *, differential: bool) -> dict[str, Tensor]:
    """Tensors of a network, or of a LoRA of it, under published names and in the published order of rows.

    The names have the prefix of the published file. Of a LoRA, B has the rows of the layer: it is put in order
    as the layer's weight is, and A stays as it is.
    """
    published = {}
    for name, tensor in state.items():
        if name == "prompt_padding_embedding":
            published[PADDING] = tensor
            continue
        if differential and re.search(r"self_attn\.to_qkv\.(lora_B\..*)?weight$", name):
            q, q2, k, k2, v = tensor.chunk(5)
            tensor = torch.cat([q, k, v, q2, k2])
        published[NETWORK + rename(name, PUBLISHED_NAMES)] = tensor
    return published


def network_config(shapes: Shapes, location: str) -> dict[str, Any]:
    """The configuration of a network with tensors of these shapes, under diffusers' names."""
    try:
        dim, features = shapes["to_timestep_embed.0.weight"]
        block = "transformer_blocks.0."
        numbers = [int(name.split(".")[1]) for name in shapes if name.startswith("transformer_blocks.")]
        return {
            "io_channels": shapes["preprocess_conv.weight"][0],
            "embed_dim": dim,
            "depth": max(numbers) + 1,
            "num_heads": dim // shapes[f"{block}self_attn.q_norm.gamma"][0],
            "cond_token_dim": shapes["to_cond_embed.0.weight"][1],
            "global_cond_dim": shapes["to_global_embed.0.weight"][1],
            "local_add_cond_dim": shapes[f"{block}to_local_embed.0.weight"][1],
            "timestep_features_dim": features,
            "ff_mult": shapes[f"{block}ff.proj_in.weight"][0] / (2 * dim),
            "num_memory_tokens": shapes.get("memory_tokens", (0,))[0],
            "use_differential_attention": shapes[f"{block}self_attn.to_qkv.weight"][0] == 5 * dim,
        }
    except (LookupError, ValueError, ZeroDivisionError):
        raise CheckpointError(
            f"{location}: no whole network of Stable Audio 3: {describe_weights(shapes)}"
        ) from None


def codec_config(
    model_config: Mapping[str, Any], location: str
) -> tuple[dict[str, Any], ChunkedAttention | None]:
    """The configuration of diffusers' AutoencoderSAME, from a published model_config.json, and how it attends in
    chunks, None where it attends in sliding windows."""
    try:
        pretransform = model_config["model"]["pretransform"]["config"]
        encoder, decoder = pretransform["encoder"]["config"], pretransform["decoder"]["config"]
        strides, window = list(encoder["strides"]), encoder.get("sliding_window")
        config = {
            "audio_channels": pretransform.get("io_channels", 2),
            "patch_size": pretransform["downsampling_ratio"] // math.prod(strides),
            "encoder_channels": encoder["channels"],
            "encoder_c_mults": list(encoder["c_mults"]),
            "encoder_strides": strides,
            "encoder_transformer_depths": list(encoder["transformer_depths"]),
            "latent_dim": encoder["latent_dim"],
            "use_differential_attention": encoder.get("differential", True),
            "dim_heads": encoder.get("dim_heads", 64),
            "ff_mult": encoder.get("ff_mult", 3),
            "sliding_window": window[0] if window else 1,
            "encoder_sinusoidal_blocks": list(encoder.get("sinusoidal_blocks", [0])),
            "decoder_sinusoidal_blocks": list(decoder.get("sinusoidal_blocks", [0])),
            "sampling_rate": model_config.get("sample_rate", 44100),
        }
        attention = None
        if not window:
            attention = ChunkedAttention(
                size=encoder["chunk_size"],
                midpoint_shift=encoder.get("chunk_midpoint_shift", False),
                decoder_kernel=3 if decoder.get("conv_mapping") else 1,
            )
        return config, attention
    except (LookupError, TypeError, AttributeError, ZeroDivisionError):
        raise CheckpointError(f"{location}: no model_config.json of Stable Audio 3") from None


WEIGHT_SIGNS = (
    ("lora_", "a LoRA adapter; give it as adapter="),
    ("transformer_blocks.", "a network of diffusers; give the folder with its config.json"),
    ("decoder.layers.", "an ACE-Step network"),
    ("text_fusion_linears.", "a DiffRhythm network"),
    ("new_tokens", "an autoencoder alone; give it as vae="),
)


def describe_weights(names: Mapping[str, Any]) -> str:
    """A sentence for error messages: which model has weights of these names."""
    for sign, model in WEIGHT_SIGNS:
        if any(sign in name for name in names):
            return f"the weights look like {model}"
    return f"the weights look like no model known here, first {next(iter(names), 'none')}"
