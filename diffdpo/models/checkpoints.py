"""Whole networks on disk, in the folder format of diffusers, for any network class of diffusers' kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffdpo.disk import disk_errors
from diffdpo.errors import CheckpointError, reason
from diffdpo.runs import read_json
from diffdpo.weight_files import WEIGHTS, assign, check_weights_file, read_tensors

CONFIG_FILE = "config.json"


def save_network(network: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """The diffusers folder format, from a gathered state dict."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        network.save_config(folder)
        save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a network; CheckpointError for another kind of file."""
    if path.exists():
        check_weights_file(path)
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: no configuration of a network, but a {type(config).__name__}")
    return config


def load_saved(network_class: Any, folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The network of a folder that `save_network` wrote, its weights mapped.

    CheckpointError names the first weights that are missing, unexpected or of another shape.
    """
    path = Path(folder)
    config, state = read_config(path / CONFIG_FILE), read_tensors(path / WEIGHTS)
    try:
        network = network_class.from_config(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / CONFIG_FILE}: no {network_class.__name__} has such sizes ({reason(error)})"
        ) from None
    assign(network, state, str(path), dtype)
    return network
