"""Checks before the first step: every parameter meant to be trained can change, and no other can.

Published trainers have violated this: a projection shared by policy and reference that was trained (TangoFlux), an
adapter for the reference that was the trained one (flow_grpo issue 47). No loss shows it at the first step.
"""

import re
from typing import Any

import torch

from diffdpo.errors import ConfigError
from diffdpo.training.references import FrozenCopy, MovingCopy
from diffdpo.training.step import AuxiliaryPolicy


def audit_parameters(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    auxiliaries: dict[str, AuxiliaryPolicy | None],
    *,
    lora: bool,
) -> int:
    """Number of trained parameters; ConfigError for the first parameter that should not be trained, or is not.

    To be called before `accelerator.prepare`, while names and storages are still the network's own.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not parameters:
        raise ConfigError("train: no parameter of the network requires a gradient; nothing would be trained")
    _check_optimizer(optimizer, parameters)
    _check_parameters(network, parameters, lora)
    places = {p.untyped_storage().data_ptr() for p in parameters.values()}
    for role, auxiliary in auxiliaries.items():
        for name, tensor in _weights(auxiliary).items():
            if tensor.requires_grad:
                raise ConfigError(f"train.{role}: its {name} requires a gradient, so it could move")
            if tensor.untyped_storage().data_ptr() in places:
                raise ConfigError(
                    f"train.{role}: its {name} is the policy's own and would be trained with it"
                )
    return sum(p.numel() for p in parameters.values())


def _check_optimizer(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]) -> None:
    """The optimiser holds every parameter that requires a gradient, and no other."""
    optimizer_ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if stray := optimizer_ids - {id(p) for p in parameters.values()}:
        raise ConfigError(
            f"train: the optimiser holds {len(stray)} tensor(s) that the network does not train"
        )
    for name, parameter in parameters.items():
        if id(parameter) not in optimizer_ids:
            raise ConfigError(f"train: {name} requires a gradient but is not given to the optimiser")


def _check_parameters(
    network: torch.nn.Module, parameters: dict[str, torch.nn.Parameter], lora: bool
) -> None:
    """With LoRA the active adapter alone requires gradients; without, every parameter does."""
    if lora and (strangers := sorted(parameters.keys() - _active_adapter(network))):
        raise ConfigError(
            f"train.lora: {strangers[0]} would be trained, but the active adapter has no such part"
        )
    if not lora and (frozen_names := [name for name, p in network.named_parameters() if not p.requires_grad]):
        raise ConfigError(f"train: {frozen_names[0]} is frozen, but all weights were to be trained")


def _active_adapter(network: Any) -> frozenset[str]:
    """Names of the parameters of the active adapters."""
    active = set(network.active_adapters())
    return frozenset(
        name
        for name, _ in network.named_parameters()
        if any(re.search(rf"\.lora_\w+\.{re.escape(adapter)}(\.|$)", name) for adapter in active)
    )


def _weights(auxiliary: AuxiliaryPolicy | None) -> dict[str, torch.Tensor]:
    if isinstance(auxiliary, FrozenCopy):
        return dict(auxiliary.network.named_parameters())
    return auxiliary.weights if isinstance(auxiliary, MovingCopy) else {}
