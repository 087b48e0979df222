"""Whole networks on disk, in the folder format of diffusers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from diffdpo.weight_files import WEIGHTS


def save_network(network: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """The diffusers folder format, from a gathered state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_config(folder)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})
