"""Plans on disk: one safetensors file a candidate, with the identity of its planner."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffdpo.errors import DataError
from diffdpo.runs import atomic_write
from diffdpo.types import Plan

PLANNER = "planner"
"""Key of the planner's identity in the file's metadata."""


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan, complete or not at all."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in plan.tensors.items()}
    atomic_write(path, save(tensors, metadata={PLANNER: plan.planner}))


def read_plan(path: Path) -> Plan:
    """A plan from its file. DataError for a file that is damaged or no plan."""
    try:
        with safe_open(path, "pt") as file:
            planner = (file.metadata() or {})[PLANNER]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"{path}: no plan of a candidate ({error}); sample the song again") from None
    return Plan(planner=planner, tensors=tensors)


def plan_digest(plan: Plan) -> str:
    """Identity of a plan: its planner and its tensors."""
    digest = hashlib.sha256(plan.planner.encode())
    for name in sorted(plan.tensors):
        tensor = plan.tensors[name].contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
