"""Network weights on disk: the diffusers folder format, strictly loaded, and LoRA adapters."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from diffdpo.errors import CheckpointError
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.runs import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAPTER = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
"""The key under which diffusers keeps a LoRA's config in the file."""


def load_network(
    folder: Path, adapter: str = "", dtype: torch.dtype = torch.float32
) -> DiffRhythmTransformer:
    """A network from `config.json` and safetensors, with adapters (folders, comma-separated) merged in, in order.

    CheckpointError names the first keys that are missing, unexpected or of another shape.
    """
    config = read_json(folder / "config.json")
    with torch.device("meta"):
        network = DiffRhythmTransformer.from_config(config)
    state = read_tensors(folder / WEIGHTS)
    check_state(network, state, str(folder))
    network.load_state_dict(state, assign=True)
    torch.nn.Module.to(
        network, dtype=dtype
    ).eval()  # diffusers' own `to` warns about modules it does not have
    for one in filter(None, adapter.split(",")):
        merge_adapter(network, Path(one))
    return network


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the weights of a network here")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from None


def check_state(network: torch.nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Every key present, none too many, every shape right."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{n} {found[n]} instead of {wanted[n]}"
        for n in sorted(wanted.keys() & found.keys())
        if found[n] != wanted[n]
    ]
    complaints = [
        f"{len(names)} {kind}, first {names[0]}"
        for kind, names in (("missing", missing), ("unexpected", extra), ("misshapen", shapes))
        if names
    ]
    if complaints:
        raise CheckpointError(f"{where}: the weights are of another model: {'; '.join(complaints)}")


def merge_adapter(network: DiffRhythmTransformer, folder: Path) -> None:
    """Add a LoRA to the weights, so that a next one can be trained on top of the result."""
    path = folder / ADAPTER
    state = read_tensors(path)
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get(ADAPTER_METADATA, "{}"))
    modules = dict(network.named_modules())
    for name, down in state.items():
        if ".lora_A" not in name:
            continue
        layer = modules.get(name.split(".lora_A")[0])
        if layer is None or layer.weight.shape[1] != down.shape[1]:
            raise CheckpointError(f"{path}: an adapter of another model ({name} does not fit)")
    network.load_lora_adapter(state, prefix=None, metadata=metadata or None)
    network.fuse_lora()
    network.unload_lora()


def save_network(network: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """The diffusers folder format, from a gathered state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_config(folder)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def save_adapter(network: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """The diffusers LoRA format, from a gathered state dict of the whole network."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = get_peft_model_state_dict(network, state_dict=state, adapter_name="default")
    config = {
        k: sorted(v) if isinstance(v, set) else v for k, v in network.peft_config["default"].to_dict().items()
    }
    metadata = {"format": "pt", ADAPTER_METADATA: json.dumps(config, sort_keys=True)}
    save_file({k: v.contiguous() for k, v in adapter.items()}, folder / ADAPTER, metadata=metadata)
