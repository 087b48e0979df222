"""Before the first step: only what should train can train, and what should stand still cannot move.

Published trainers have got this wrong: a projection shared by policy and reference that was trained (TangoFlux), an
adapter for the reference that was the trained one (flow_grpo issue 47). No loss shows it at the first step.
"""

from typing import Any

import torch

from diffdpo.errors import ConfigError
from diffdpo.training.references import Following, FrozenCopy
from diffdpo.training.step import AuxiliaryPolicy


def audit(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    auxiliaries: dict[str, AuxiliaryPolicy | None],
    *,
    lora: bool,
) -> int:
    """Number of trained parameters; ConfigError naming the first thing that is wrong.

    Looked at before `accelerator.prepare`, while names and storages are still the network's own.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("train: no parameter of the network requires a gradient; nothing would be trained")
    _check_optimizer(optimizer, trained)
    _check_intended(network, trained, lora)
    places = {p.untyped_storage().data_ptr() for p in trained.values()}
    for role, auxiliary in auxiliaries.items():
        for name, tensor in _weights(auxiliary).items():
            if tensor.requires_grad:
                raise ConfigError(f"train.{role}: its {name} requires a gradient, so it could move")
            if tensor.untyped_storage().data_ptr() in places:
                raise ConfigError(
                    f"train.{role}: its {name} is the policy's own and would be trained with it"
                )
    return sum(p.numel() for p in trained.values())


def _check_optimizer(optimizer: torch.optim.Optimizer, trained: dict[str, torch.nn.Parameter]) -> None:
    """It steps what requires a gradient, and nothing else."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if stray := stepped - {id(p) for p in trained.values()}:
        raise ConfigError(
            f"train: the optimiser holds {len(stray)} tensor(s) that the network does not train"
        )
    for name, parameter in trained.items():
        if id(parameter) not in stepped:
            raise ConfigError(f"train: {name} requires a gradient but is not given to the optimiser")


def _check_intended(network: torch.nn.Module, trained: dict[str, torch.nn.Parameter], lora: bool) -> None:
    """With LoRA the active adapter alone is trained; without, everything."""
    if lora and (strangers := sorted(trained.keys() - _active_adapter(network))):
        raise ConfigError(
            f"train.lora: {strangers[0]} would be trained, but the active adapter has no such part"
        )
    if not lora and (frozen := [name for name, p in network.named_parameters() if not p.requires_grad]):
        raise ConfigError(f"train: {frozen[0]} is frozen, but all weights were to be trained")


def _active_adapter(network: Any) -> frozenset[str]:
    """Names of the parameters of the adapter that is switched on."""
    active = set(network.active_adapters())
    return frozenset(
        name
        for name, _ in network.named_parameters()
        if any(f".lora_{side}.{adapter}." in name for side in "AB" for adapter in active)
    )


def _weights(auxiliary: AuxiliaryPolicy | None) -> dict[str, torch.Tensor]:
    if isinstance(auxiliary, FrozenCopy):
        return dict(auxiliary.network.named_parameters())
    return auxiliary.weights if isinstance(auxiliary, Following) else {}
