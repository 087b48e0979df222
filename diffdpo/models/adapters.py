"""LoRA adapters on disk, for any network with diffusers' PeftAdapterMixin: read, merged by weight, written."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffdpo.errors import CheckpointError
from diffdpo.weight_files import WEIGHTS, read_tensors

ADAPTER = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
"""The key under which diffusers keeps a LoRA's config in the file."""
ADAPTER_PREFIX = "transformer."
"""What diffusers' pipelines put before the names of a transformer's adapter."""


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A LoRA's tensors under bare names, and its config."""
    path = folder / ADAPTER
    if not path.is_file():
        hint = (
            "it holds a whole network; give it as network="
            if (folder / WEIGHTS).is_file()
            else f"no {ADAPTER}"
        )
        raise CheckpointError(f"{folder}: no adapter here: {hint}")
    state = read_tensors(path)
    with safe_open(path, "pt") as file:
        config = json.loads((file.metadata() or {}).get(ADAPTER_METADATA, "{}"))
    return {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in state.items()}, config


def parse_adapters(text: str) -> list[tuple[Path, float]]:
    """`runs/a/export@0.5,runs/b/export` to folders and weights, in order; 1 where no weight is given.

    A weight is a factor on its adapter's change of the network; the weights need not sum to one. CheckpointError
    for a weight that is not a number.
    """
    adapters = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        folder, at, weight = entry.rpartition("@")
        if not at or "/" in weight or Path(entry).is_dir():  # an @ in the folder's own name
            folder, weight = entry, "1"
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not folder or not math.isfinite(value):
            raise CheckpointError(f"adapter {entry!r}: {weight!r} is not a weight; write FOLDER@0.5")
        adapters.append((Path(folder), value))
    return adapters


def merge_adapter(network: Any, folder: Path, weight: float = 1.0) -> None:
    """Add `weight` times a LoRA to the weights: W + weight (alpha / rank) B A.

    Sums commute, so several adapters trained from one network give its LoRA soup whatever their order (LeVo's
    interpolation of per-axis models), and adapters trained on top of each other give the last one.
    """
    state, config = read_adapter(folder)
    modules = dict(network.named_modules())
    for name, tensor in state.items():
        side = 1 if ".lora_A" in name else 0  # A has the inputs of the layer, B its outputs
        layer = modules.get(name.split(".lora_")[0])
        if not isinstance(layer, torch.nn.Linear) or layer.weight.shape[side] != tensor.shape[side]:
            raise CheckpointError(f"{folder / ADAPTER}: an adapter of another model ({name} does not fit)")
    network.load_lora_adapter(state, prefix=None, metadata=config or None)
    network.fuse_lora(lora_scale=weight)
    network.unload_lora()


def save_adapter(network: Any, state: dict[str, Tensor], folder: Path) -> None:
    """The diffusers LoRA format, from a gathered state dict of the whole network."""
    adapter = get_peft_model_state_dict(network, state_dict=state, adapter_name="default")
    config = {
        k: sorted(v) if isinstance(v, set) else v for k, v in network.peft_config["default"].to_dict().items()
    }
    write_adapter(adapter, config, folder)


def write_adapter(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """A LoRA in diffusers' format, from tensors under bare names and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", ADAPTER_METADATA: json.dumps(config, sort_keys=True)}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / ADAPTER, metadata=metadata)
