"""DiffRhythm as its authors released it: which models there are, and how their files are laid out.

The functions read names and shapes of tensors only. The published files do not say which model they hold: causal
attention, as in v1.0, is not in the weights, and only v1.2-full shows its length, by an embedding of the duration.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdpo.errors import CheckpointError
from diffdpo.hub import Published
from diffdpo.registry import pick
from diffdpo.weight_files import COMPILED, Shapes

CHECKPOINT_FILE = "cfm_model.pt"
"""Name of the weights in the repository of every release."""
MODEL_STATE, EMA_STATE = "model_state_dict", "ema_model_state_dict"
NETWORK_PREFIX = "transformer."
WRAPPINGS = ("ema_model.", "module.", NETWORK_PREFIX)
"""Prefixes of names, outermost first: moving average, DistributedDataParallel, flow model around the network."""
DERIVED_BUFFERS = ("rotary_emb.inv_freq", "text_embed.freqs_cis")
"""Buffers in some copies of the weights; their values follow from the configuration."""
N_HEADS = 32
"""Attention heads of every network that the published code builds, whatever its configuration says."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published model: its repository, and the properties that its weights do not show."""

    repo: str
    causal: bool
    """Whether a frame attends to itself and earlier frames only."""
    max_frames: int
    duration_embedding: bool

    @property
    def weights(self) -> Published:
        return Published(name=self.repo.split("/")[1], repo=self.repo, license="Apache-2.0")


RELEASES: dict[str, Release] = {
    "v1.0-base": Release(
        repo="ASLP-lab/DiffRhythm-base", causal=True, max_frames=2048, duration_embedding=False
    ),
    "v1.0-full": Release(
        repo="ASLP-lab/DiffRhythm-full", causal=True, max_frames=6144, duration_embedding=False
    ),
    "v1.2-base": Release(
        repo="ASLP-lab/DiffRhythm-1_2", causal=False, max_frames=2048, duration_embedding=False
    ),
    "v1.2-full": Release(
        repo="ASLP-lab/DiffRhythm-1_2-full", causal=False, max_frames=6144, duration_embedding=True
    ),
}


def unwrap(checkpoint: Mapping[str, Any], location: str, *, ema: bool = False) -> dict[str, Tensor]:
    """The network's tensors under their bare names, from any published layout.

    Files hold the tensors themselves or, made in training, the model and its moving average side by side;
    `ema` asks for the latter.
    """
    state_keys = [key for key in (MODEL_STATE, EMA_STATE) if isinstance(checkpoint.get(key), Mapping)]
    if ema and EMA_STATE not in state_keys and not any(key.startswith("ema_model.") for key in checkpoint):
        raise CheckpointError(f"{location}: holds no moving average; leave ema out")
    content = checkpoint[state_keys[-1] if ema else state_keys[0]] if state_keys else checkpoint
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if any(
        name.startswith("ema_model.") for name in state
    ):  # beside it may stand counters and the online model
        state = {name: value for name, value in state.items() if name.startswith("ema_model.")}
    bare = {_bare(name): value for name, value in state.items()}
    if len(bare) < len(state):
        raise CheckpointError(f"{location}: holds more than one network under different prefixes")
    if not bare:
        raise CheckpointError(
            f"{location}: holds no tensors; keys: {', '.join(list(checkpoint)[:5]) or 'none'}"
        )
    return {name: value for name, value in bare.items() if name not in DERIVED_BUFFERS}


def wrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bare names to published ones."""
    return {NETWORK_PREFIX + name: value for name, value in state.items()}


def _bare(name: str) -> str:
    name = name.replace(COMPILED, "")
    for prefix in WRAPPINGS:
        name = name.removeprefix(prefix)
    return name


def release_of(location: str, shapes: Shapes, choice: str = "") -> Release:
    """The release of a file: the user's `choice`, else by the folder of its repository, else by its weights."""
    if choice:
        return pick("release", RELEASES, choice)
    parts = {part.removeprefix("models--").replace("--", "/").split("/")[-1] for part in Path(location).parts}
    for release in RELEASES.values():
        if release.repo.split("/")[1] in parts:
            return release
    if any(name.startswith("duration_time_embed.") for name in shapes):
        return RELEASES["v1.2-full"]
    raise CheckpointError(
        f"{location}: {looks_like(shapes)}. Weights do not tell how they attend and how long their songs are; "
        f"say which model it is with release=, one of {', '.join(RELEASES)}"
    )


def config_of(release: Release, shapes: Shapes) -> dict[str, Any]:
    """A network's configuration: sizes as the weights have them, the rest as the release has it.

    Weights of another kind keep the published sizes, and the strict comparison says what is wrong with them.
    """
    config = {
        "causal": release.causal,
        "max_frames": release.max_frames,
        "duration_embedding": release.duration_embedding,
        "num_attention_heads": N_HEADS,
    }
    try:
        return config | _sizes(shapes)
    except (LookupError, ValueError, ZeroDivisionError):
        return config


def _sizes(shapes: Shapes) -> dict[str, int]:
    channels, dim = shapes["proj_out.weight"]
    rows, text_dim = shapes["text_embed.text_embed.weight"]
    cond_dim, frequencies = shapes["time_embed.time_mlp.0.weight"]
    inputs = shapes["input_embed.proj.weight"][1]
    _, per_group, kernel = shapes["input_embed.conv_pos_embed.conv1d.0.weight"]
    sizes = {
        "dim": dim,
        "depth": _count(shapes, "transformer_blocks"),
        "ff_mult": shapes["transformer_blocks.0.mlp.gate_proj.weight"][0] // dim,
        "latent_channels": channels,
        "text_num_embeds": rows - 1,
        "text_dim": text_dim,
        "style_dim": inputs - 2 * channels - text_dim - cond_dim,
        "cond_dim": cond_dim,
        "time_frequencies": frequencies,
        "conv_layers": _count(shapes, "text_embed.text_blocks"),
        "conv_pos_kernel_size": kernel,
        "conv_pos_groups": dim // per_group,
    }
    if sizes["conv_layers"]:
        sizes["text_ff_mult"] = shapes["text_embed.text_blocks.0.pwconv1.weight"][0] // text_dim
        sizes["text_kernel_size"] = shapes["text_embed.text_blocks.0.dwconv.weight"][2]
    return sizes


def _count(shapes: Shapes, prefix: str) -> int:
    """Modules of a list: one more than the highest index."""
    numbers = [int(m[1]) for name in shapes if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


SIGNS = (
    ("lora_", "a LoRA adapter; give it as adapter="),
    ("projectors.", "DiffRhythm 2"),
    ("latent_embed.", "DiffRhythm 2"),
    ("duration_abs_embed.", "JAM"),
    ("downsample_blocks.", "JAM"),
    ("decoder.layers.", "a VAE of stable-audio-tools; give a VAE as vae="),
    ("decoder.block.", "a VAE; give it as vae="),
    ("attn.to_q.", "F5-TTS or a network of diffusers"),
)
"""Parts of tensor names that no DiffRhythm v1 has, and the models that have them."""


def looks_like(shapes: Shapes) -> str:
    """A sentence for error messages: which model has weights of these names and shapes."""
    for sign, model in SIGNS:
        if any(sign in name for name in shapes):
            return f"they look like {model}"
    if not {"proj_out.weight", "text_fusion_linears.0.0.weight"} <= shapes.keys():
        return "they look like no model known here"
    full = any(name.startswith("duration_time_embed.") for name in shapes)
    dim, depth = shapes["proj_out.weight"][-1], _count(shapes, "transformer_blocks")
    size = "" if (dim, depth) == (2048, 16) else f" with dim={dim} and depth={depth}"
    return f"they look like DiffRhythm {'v1.2-full' if full else 'v1.0 or v1.2-base'}{size}"
