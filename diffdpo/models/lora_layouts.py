"""Names of a LoRA's tensors in the layouts of other programs: peft's, and ComfyUI's.

The bare names are those of diffusers: `LAYER.lora_A.weight`, `LAYER.lora_B.weight`, and for DoRA
`LAYER.lora_magnitude_vector`. ComfyUI knows layers by the names of the original code, which a network of
other names gives by its function `original_module(name)`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from diffdpo.disk import disk_errors
from diffdpo.errors import CheckpointError

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
COMFYUI_PREFIX = "diffusion_model."
COMFYUI_PARTS = {"lora_A.weight": "lora_A.weight", "lora_B.weight": "lora_B.weight",
                 "lora_magnitude_vector": "dora_scale"}  # fmt: skip
"""ComfyUI's name for each part of a layer's adapter; its `alpha` is the factor times the rank."""
SPELLINGS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
"""kohya's names of the two factors, which ComfyUI reads as well."""


def write_peft(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """The folder that `PeftModel.from_pretrained` loads."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {PEFT_PREFIX + name: tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / PEFT_FILE, metadata={"format": "pt"})
        text = json.dumps({**config, "peft_type": "LORA", "task_type": None}, indent=2, sort_keys=True)
        (folder / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")


def from_peft(name: str) -> str:
    """The bare name of a tensor in peft's layout."""
    return name.removeprefix(PEFT_PREFIX)


def scale_of(config: PeftLora, layer: str, rank: int) -> float:
    """The factor of B A in a layer, from its own rank and alpha where the config has patterns."""
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), layer), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def to_comfyui(
    state: Mapping[str, Tensor], config: Mapping[str, Any], network: Any = None
) -> dict[str, Tensor]:
    """ComfyUI's names, every layer with its own alpha. CheckpointError for a part that it cannot hold."""
    rename, peft = original_names_of(network), PeftLora(**config)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, part = name.partition(".lora_")
        if f"lora_{part}" not in COMFYUI_PARTS:
            raise CheckpointError(f"{name}: ComfyUI has no place for this part of an adapter")
        own_layer = COMFYUI_PREFIX + rename(layer)
        is_magnitude = part == "magnitude_vector"
        tensors[f"{own_layer}.{COMFYUI_PARTS[f'lora_{part}']}"] = (
            tensor.reshape(-1, 1) if is_magnitude else tensor
        ).contiguous()
        if part == "A.weight":
            rank = len(tensor)
            tensors[f"{own_layer}.alpha"] = torch.tensor(scale_of(peft, layer, rank) * rank)
    return tensors


def is_comfyui(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have ComfyUI's names."""
    return any(name.startswith(COMFYUI_PREFIX) for name in state)


def from_comfyui(
    state: Mapping[str, Tensor], network: Any = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Bare names, and a config with the rank and alpha of every layer."""
    names = {} if network is None else {
        original_names_of(network)(name): name for name, _ in network.named_modules()
    }  # fmt: skip
    parts = {comfyui: bare for bare, comfyui in COMFYUI_PARTS.items()} | SPELLINGS
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in state.items():
        match = re.fullmatch(
            rf"{re.escape(COMFYUI_PREFIX)}(.+?)\.((?:lora_\w+\.weight)|alpha|dora_scale)", name
        )
        if match is None:
            raise CheckpointError(f"{name}: no part of a LoRA in ComfyUI's layout")
        layer = str(names.get(match[1], match[1]))
        if match[2] == "alpha":
            alphas[layer] = float(tensor)
        else:
            part = parts.get(match[2], match[2])
            tensors[f"{layer}.{part}"] = tensor.flatten() if match[2] == "dora_scale" else tensor
    ranks = {name.removesuffix(".lora_A.weight"): len(t) for name, t in tensors.items() if "lora_A" in name}
    first = next(iter(ranks.values()), 1)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": first,
        "lora_alpha": first,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{re.escape(layer)}": rank for layer, rank in ranks.items()},
        "alpha_pattern": {f"^{re.escape(layer)}": alphas.get(layer, rank) for layer, rank in ranks.items()},
        "use_dora": any("lora_magnitude_vector" in name for name in tensors),
    }
    return dict(sorted(tensors.items())), config


def write_comfyui(
    state: Mapping[str, Tensor], config: Mapping[str, Any], path: Path, network: Any = None
) -> None:
    """One file for ComfyUI's folder `models/loras`."""
    tensors = to_comfyui(state, config, network)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})


def original_names_of(network: Any) -> Callable[[str], str]:
    """From a layer's name in the network to its name in the original code; the same without `original_module`."""
    return getattr(network, "original_module", None) or str
