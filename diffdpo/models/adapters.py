"""LoRA adapters on disk, for any network with diffusers' PeftAdapterMixin: read, merged by weight, written."""

import json
import math
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffdpo.disk import disk_errors
from diffdpo.errors import CheckpointError, reason
from diffdpo.weight_files import WEIGHTS, read_tensors

ADAPTER = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
"""The key under which diffusers keeps a LoRA's config in the file."""
ADAPTER_PREFIX = "transformer."
"""What diffusers' pipelines put before the names of a transformer's adapter."""
PEFT_KEYS = frozenset(field.name for field in fields(PeftLora))
"""Keys of a LoRA's config in this version of peft."""
PEFT_VERSION = "peft_version"
"""The key under which newer versions of peft keep their number."""

Adapters = str | Sequence[str]
"""Folders of adapters, comma-separated or as a list, each with an optional weight."""


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A LoRA's tensors under bare names, and its config, which is empty where the file has none.

    CheckpointError for a folder without an adapter, a damaged file, or a config that only a newer peft understands.
    """
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
        text = (file.metadata() or {}).get(ADAPTER_METADATA, "{}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its {ADAPTER_METADATA} is no JSON ({reason(error)})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its {ADAPTER_METADATA} is a {type(config).__name__}, not an object")
    return {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in state.items()}, config


def supported_config(
    config: Mapping[str, Any], path: Path, keys: Collection[str] = PEFT_KEYS
) -> dict[str, Any]:
    """A LoRA's config with the keys that this peft has.

    A newer peft writes all its keys: those that are off (None, False, empty) are left out. CheckpointError for
    another, since the adapter would not be the one that was trained.
    """
    unknown = sorted(
        key for key in config.keys() - set(keys) if key != PEFT_VERSION and not is_off(config[key])
    )
    if unknown:
        version = config.get(PEFT_VERSION)
        needs = f"peft {version}" if version else "a newer peft"
        raise CheckpointError(
            f"{path}: an adapter of {needs}: {unknown[0]}={config[unknown[0]]!r} is unknown to peft "
            f"{metadata.version('peft')}, which is installed; pip install --upgrade peft"
        )
    return {key: value for key, value in config.items() if key in keys}


def is_off(value: Any) -> bool:
    """Whether a value of a config asks for nothing: None, False, or an empty text, list or mapping."""
    return value is None or value is False or (isinstance(value, Sized) and len(value) == 0)


def parse_adapters(adapter: Adapters) -> list[tuple[Path, float]]:
    """`runs/a/export@0.5,runs/b/export`, or a list of such entries, to folders and weights; 1 where none is given.

    A weight is a factor on its adapter's change of the network; the weights need not sum to one. A comma, or an @,
    may be part of a folder's name: the longest folder that exists is taken. CheckpointError for a weight that is
    not a number.
    """
    texts = [adapter] if isinstance(adapter, str) else adapter
    return [parse_entry(entry) for text in texts for entry in split_entries(text)]


def split_entries(text: str) -> list[str]:
    """The entries of a list with commas between them; an entry that names a folder keeps its own commas."""
    pieces, entries, start = text.split(","), [], 0
    while start < len(pieces):
        stops = range(len(pieces), start + 1, -1)
        stop = next((n for n in stops if is_folder(",".join(pieces[start:n]).strip())), start + 1)
        entries.append(",".join(pieces[start:stop]).strip())
        start = stop
    return [entry for entry in entries if entry]


def is_folder(entry: str) -> bool:
    """Whether an entry, with or without its weight, is a folder that exists."""
    folder, _, weight = entry.rpartition("@")
    names = (entry,) if set(",/") & set(weight) else (entry, folder)
    return any(name and Path(name).is_dir() for name in names)


def parse_entry(entry: str) -> tuple[Path, float]:
    """The folder and the weight of `FOLDER` or `FOLDER@0.5`."""
    folder, at, weight = entry.rpartition("@")
    if not at or "/" in weight or Path(entry).is_dir():  # an @ in the folder's own name
        folder, weight = entry, "1"
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not folder or not math.isfinite(value):
        raise CheckpointError(f"adapter {entry!r}: {weight!r} is not a weight; write FOLDER@0.5")
    return Path(folder), value


def merge_adapter(network: Any, folder: Path, weight: float = 1.0) -> None:
    """Add `weight` times a LoRA to the weights: W + weight (alpha / rank) B A.

    Sums commute, so several adapters trained from one network give its LoRA soup whatever their order (LeVo's
    interpolation of per-axis models), and adapters trained on top of each other give the last one.
    """
    state, config = read_adapter(folder)
    path = folder / ADAPTER
    config = supported_config(config, path)
    downs, ups = ({name.split(side)[0] for name in state if side in name} for side in (".lora_A", ".lora_B"))
    if not downs or downs != ups:
        raise CheckpointError(f"{path}: no whole adapter: {len(downs)} layers have an A and {len(ups)} a B")
    modules = dict(network.named_modules())
    for name, tensor in state.items():
        side = 1 if ".lora_A" in name else 0  # A has the inputs of the layer, B its outputs
        layer = modules.get(name.split(".lora_")[0])
        shape = tuple(tensor.shape)
        if (
            not isinstance(layer, torch.nn.Linear)
            or shape[side : side + 1] != layer.weight.shape[side : side + 1]
        ):
            raise CheckpointError(f"{path}: an adapter of another model ({name} does not fit)")
    try:
        PeftLora(**config)
        network.load_lora_adapter(state, prefix=None, metadata=config or None)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        text = reason(error.__cause__ or error)
        raise CheckpointError(f"{path}: its {ADAPTER_METADATA} does not fit its tensors ({text})") from None
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
    header = {"format": "pt", ADAPTER_METADATA: json.dumps(config, sort_keys=True)}
    with disk_errors(folder / ADAPTER):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in state.items()}, folder / ADAPTER, metadata=header)
