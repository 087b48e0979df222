"""Tensors of weight files: mapped into memory, compared with a network, and assigned to it.

Files are mapped, never read as a whole: a tensor is copied when its precision changes, one at a time, and otherwise
stays in the file's pages until somebody writes to it. Pickles are opened with `weights_only`, so none can run code.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffdpo.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Name of the weights in a folder of diffusers' format."""
MAX_KEYS = 3
"""Keys of each kind that an error names."""

Shapes = Mapping[str, tuple[int, ...]]
Identify = Callable[[Shapes], str]
"""A description of the model that has weights of these names and shapes."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the weights of a network here")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`, its tensors mapped."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise CheckpointError(
            f"{path}: cannot be read as tensors saved by torch 1.6 or newer ({reason}); copy or save it again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_state(
    network: torch.nn.Module, state: Mapping[str, Tensor], location: str, identify: Identify | None = None
) -> None:
    """Compare a state dict with a network's: the same keys, of the same shapes.

    CheckpointError with the first keys that are missing, unexpected or misshapen, and with the model that
    `identify` recognises in the weights.
    """
    network_shapes, file_shapes = shapes(network.state_dict()), shapes(state)
    missing_keys = [f"{name} {network_shapes[name]}" for name in network_shapes if name not in file_shapes]
    extra_keys = [f"{name} {file_shapes[name]}" for name in file_shapes if name not in network_shapes]
    misshapen_keys = [
        f"{name} {file_shapes[name]} instead of {network_shapes[name]}"
        for name in network_shapes
        if name in file_shapes and file_shapes[name] != network_shapes[name]
    ]
    complaints = [
        f"{len(names)} {kind}, first {', '.join(names[:MAX_KEYS])}"
        for kind, names in (
            ("missing", missing_keys),
            ("unexpected", extra_keys),
            ("misshapen", misshapen_keys),
        )
        if names
    ]
    if complaints:
        hint = f"; {identify(file_shapes)}" if identify else ""
        raise CheckpointError(f"{location}: the weights are of another model: {'; '.join(complaints)}{hint}")


def assign(
    module: torch.nn.Module,
    state: dict[str, Tensor],
    location: str,
    dtype: torch.dtype | None,
    identify: Identify | None = None,
) -> None:
    """Assign tensors to a module on the meta device, one by one.

    `state` is emptied on the way, so that no tensor is held twice. CheckpointError as in `check_state`.
    """
    check_state(module, state, location, identify)
    for name in list(state):
        tensor = state.pop(name)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        owner, _, leaf = name.rpartition(".")
        target = module.get_submodule(owner)
        old = getattr(target, leaf)
        if isinstance(old, torch.nn.Parameter):
            setattr(target, leaf, torch.nn.Parameter(tensor, requires_grad=old.requires_grad))
        else:
            target.register_buffer(leaf, tensor)
    module.eval()
