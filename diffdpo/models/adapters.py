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
from diffdpo.models import lora_layouts
from diffdpo.models.adapter_config import ALL_LAYERS, match_layers
from diffdpo.models.checkpoints import read_config
from diffdpo.weight_files import WEIGHTS, read_tensors

ADAPTER = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
"""The key under which diffusers keeps a LoRA's config in the file."""
ADAPTER_PREFIX = "transformer."
"""What diffusers' pipelines put before the names of a transformer's adapter."""
PEFT_KEYS = frozenset(field.name for field in fields(PeftLora))
"""Keys of a LoRA's config in this version of peft."""
ADAPTABLE = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
"""Layers that LoRA can adapt."""
MAGNITUDE = "lora_magnitude_vector"
"""The part of DoRA beside the two factors."""
PEFT_VERSION = "peft_version"
"""The key under which newer versions of peft keep their number."""

Adapters = str | Sequence[str]
"""Folders or files of adapters, comma-separated or as a list, each with an optional weight."""


def read_adapter(folder: Path, network: Any = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A LoRA's tensors under bare names, and its config, which is empty where the file has none.

    `folder` is in any layout of `lora_layouts`, or a file of ComfyUI's, for which the names of some models need the
    network. CheckpointError for a folder without an adapter, a damaged file, or a config that is none.
    """
    path = adapter_file(folder)
    if not path.is_file():
        hint = (
            "it holds a whole network; give it as network="
            if (folder / WEIGHTS).is_file()
            else f"no {ADAPTER}"
        )
        raise CheckpointError(f"{folder}: no adapter here: {hint}")
    state = read_tensors(path)
    if lora_layouts.is_comfyui(state):
        return lora_layouts.from_comfyui(state, network)
    if path.name == lora_layouts.PEFT_FILE:
        config = read_config(path.with_name(lora_layouts.PEFT_CONFIG))
        return {lora_layouts.from_peft(name): tensor for name, tensor in state.items()}, config
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(ADAPTER_METADATA, "{}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its {ADAPTER_METADATA} is no JSON ({reason(error)})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its {ADAPTER_METADATA} is a {type(config).__name__}, not an object")
    bare_config = {name.removeprefix(ADAPTER_PREFIX): value for name, value in config.items()}
    return {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in state.items()}, bare_config


def adapter_file(folder: Path) -> Path:
    """The file with the tensors of an adapter: of a folder in diffusers' or peft's layout, or the file itself."""
    if folder.is_file():
        return folder
    peft_path = folder / lora_layouts.PEFT_FILE
    return peft_path if peft_path.is_file() and not (folder / ADAPTER).is_file() else folder / ADAPTER


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


def merge_adapter(
    network: Any, folder: Path, weight: float = 1.0, layers: Sequence[str] = ALL_LAYERS
) -> None:
    """Add `weight` times a LoRA's change to the weights; for a plain LoRA W + weight (alpha / rank) B A.

    `layers` chooses layers by patterns, see `AdapterConfig`; the others stay as they are.

    Sums commute, so several adapters trained from one network give its LoRA soup whatever their order (LeVo's
    interpolation of per-axis models), and adapters trained on top of each other give the last one. DoRA's change
    depends on the weights below it: see `check_soup`.
    """
    state, config = read_adapter(folder, network)
    path = adapter_file(folder)
    config = supported_config(config, path)
    check_fit(network, state, path)
    names = {name.split(".lora_")[0] for name in state}
    selection = match_layers(network, names, layers, path)
    before = {name: _weights_of(network, name) for name in names if weight != 1 or name not in selection}
    try:
        check_mergeable(PeftLora(**config), path)
        network.load_lora_adapter(dict(sorted(state.items())), prefix=None, metadata=config or None)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        text = reason(error.__cause__ or error)
        raise CheckpointError(f"{path}: its {ADAPTER_METADATA} does not fit its tensors ({text})") from None
    try:
        network.fuse_lora()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: cannot be merged ({reason(error)})") from None
    network.unload_lora()
    with torch.no_grad():
        for name, tensors in before.items():
            for parameter, old in zip(_parameters_of(network, name), tensors, strict=True):
                parameter.copy_(torch.lerp(old, parameter, weight) if name in selection else old)


def merge_adapters(network: Any, adapter: Adapters) -> None:
    """Merge the adapters of a list, in its order; see `parse_adapters` and `check_soup`."""
    entries = parse_adapters(adapter)
    check_soup(entries)
    for folder, weight in entries:
        merge_adapter(network, folder, weight)


def check_soup(entries: Sequence[tuple[Path, float]]) -> None:
    """CheckpointError for a weighted sum of adapters that is none.

    What DoRA changes depends on the weights below it, so changes do not add up: a single DoRA may have a
    weight, and several adapters one of which is a DoRA are merged in their order, each whole, as rounds train them.
    """
    if len(entries) < 2 or all(weight == 1 for _, weight in entries):
        return
    for folder, _ in entries:
        if any(MAGNITUDE in name for name in read_adapter(folder)[0]):
            raise CheckpointError(
                f"{folder}: a DoRA in a weighted sum: what it changes depends on the others; merge it alone with a "
                "weight, or all of them in the order of training with weight 1"
            )


def check_fit(network: Any, state: Mapping[str, Tensor], path: Path) -> None:
    """CheckpointError unless every layer of an adapter has both factors, of the sizes of the network's."""
    downs, ups = ({name.split(side)[0] for name in state if side in name} for side in (".lora_A", ".lora_B"))
    if not downs or downs != ups:
        raise CheckpointError(f"{path}: no whole adapter: {len(downs)} layers have an A and {len(ups)} a B")
    modules = dict(network.named_modules())
    for name, tensor in state.items():
        side = 1 if ".lora_A" in name else 0  # A has the inputs of the layer, B its outputs
        layer = modules.get(name.split(".lora_")[0])
        layer = getattr(layer, "base_layer", layer)  # under an adapter that is not merged
        shape = tuple(tensor.shape)
        if (
            layer is None
            or not is_adaptable(layer)
            or shape[side : side + 1] != layer.weight.shape[side : side + 1]
        ):
            raise CheckpointError(f"{path}: an adapter of another model ({name} does not fit)")


def is_adaptable(layer: Any) -> bool:
    """Whether a layer can have a LoRA that can be merged: linear ones, and convolutions not in groups."""
    return isinstance(layer, ADAPTABLE) and getattr(layer, "groups", 1) == 1


def check_mergeable(config: PeftLora, path: Path) -> None:
    """CheckpointError for an adapter that acts on some tokens only, or on the input: no weights are like it."""
    for key in ("alora_invocation_tokens", "use_qalora", "monteclora_config", "arrow_config"):
        if getattr(config, key, None):
            raise CheckpointError(f"{path}: an adapter with {key} cannot be merged into weights")


def _parameters_of(network: Any, layer: str) -> list[torch.nn.Parameter]:
    return list(network.get_submodule(layer).parameters())


def _weights_of(network: Any, layer: str) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in _parameters_of(network, layer)]


def save_adapter(network: Any, state: dict[str, Tensor], folder: Path) -> None:
    """The diffusers LoRA format, from a gathered state dict of the whole network."""
    adapter = get_peft_model_state_dict(network, state_dict=state, adapter_name="default")
    write_adapter(adapter, plain_config(network.peft_config["default"]), folder)


def plain_config(config: PeftLora) -> dict[str, Any]:
    """A LoRA's config as JSON can hold it."""
    return json.loads(json.dumps(config.to_dict(), default=lambda value: sorted(value)))


def write_adapter(
    state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, prefix: str = ""
) -> None:
    """A LoRA in diffusers' format, from tensors under bare names and its config.

    With the prefix `ADAPTER_PREFIX` pipelines find it with `load_lora_weights`, and networks with
    `load_lora_adapter`; without, networks do with `prefix=None`.
    """
    text = json.dumps({prefix + name: value for name, value in config.items()}, sort_keys=True)
    with disk_errors(folder / ADAPTER):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {prefix + name: tensor.contiguous() for name, tensor in state.items()},
            folder / ADAPTER,
            metadata={"format": "pt", ADAPTER_METADATA: text},
        )
