"""What a run under FSDP2 continues from: trained weights and moments by name, whole, in one file.

Tensors are gathered one at a time and written by the first process; any number of processes can read the file, each
its own part of every tensor. Frozen weights are not in it, since they do not change.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffdpo.weight_files import read_tensors

TRAINED_STATE = "trained.safetensors"
"""The file's name in the state of a checkpoint."""
WEIGHT = "weight"
"""The kind of a tensor that is a parameter; the others are those of the optimiser: `MOMENTS` and step."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's moments as torch names them."""


def keep_whole_state(accelerator: Accelerator, network: Any, optimizer: Any) -> None:
    """Let the accelerator's checkpoints hold the whole trained state in place of each process's part."""

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()
        state = {}
        for name, tensor in _trained_tensors(network, optimizer):
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # on all processes
            if accelerator.is_main_process:
                state[name] = whole.detach().cpu().clone().contiguous()
        if accelerator.is_main_process:
            save_file(state, Path(folder) / TRAINED_STATE)

    def load(models: list[Any], folder: str) -> None:
        models.clear()
        load_whole_state(network, optimizer, read_tensors(Path(folder) / TRAINED_STATE))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _trained_tensors(network: Any, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and moments, as `exp_avg.blocks.0.weight`, in one order on all processes."""
    moments = optimizer.state
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            yield f"{WEIGHT}.{name}", parameter
            for kind in sorted(moments.get(parameter, {})):
                yield f"{kind}.{name}", moments[parameter][kind]


@torch.no_grad()
def load_whole_state(network: Any, optimizer: Any, state: dict[str, Tensor]) -> None:
    """Set this process's part of parameters and moments. KeyError for a trained parameter that the state lacks."""
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        _set_own_rows(parameter, state[f"{WEIGHT}.{name}"])
        kinds = [kind for kind in MOMENTS if f"{kind}.{name}" in state]
        if kinds:
            moments = {kind: torch.zeros_like(parameter) for kind in kinds}
            for kind, moment in moments.items():
                _set_own_rows(moment, state[f"{kind}.{name}"])
            optimizer.state[parameter] = {"step": state[f"step.{name}"].clone(), **moments}


def _set_own_rows(part: Any, whole: Tensor) -> None:
    """Fill the rows of a tensor that this process has, from the whole tensor."""
    mesh = part.device_mesh
    chunks = whole.chunk(mesh.size(), 0)  # as torch shards: the last processes may have fewer rows, or none
    if mesh.get_local_rank() < len(chunks):
        part.to_local().copy_(chunks[mesh.get_local_rank()])
