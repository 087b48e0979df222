"""Policies beside the trained one: the reference it is compared with, and the one that made the songs.

All of them answer `of(policy)` with something to be called like a network, and `follow(policy, step)` after an
optimiser step, which moves those that follow the policy and does nothing to the others.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call


@dataclass(frozen=True)
class AdapterOff:
    """The policy with its adapters switched off; no second copy of the weights."""

    unwrap: Callable[[Any], Any]
    """accelerator.unwrap_model: from what accelerate made of the network back to the network."""

    @contextmanager
    def of(self, network: Any) -> Iterator[Any]:
        bare = self.unwrap(network)
        bare.disable_adapters()
        try:
            yield bare
        finally:
            bare.enable_adapters()

    def follow(self, network: Any, step: int) -> None:
        """It stays where it is."""


@dataclass(frozen=True)
class FrozenCopy:
    """A second network that never changes. Exact (margin 0 at step 0) only in the policy's own dtype."""

    network: torch.nn.Module
    device: torch.device
    """Where it computes."""
    offload: bool = False
    """It waits on the CPU between forward passes: slower, and nothing of it stays on the GPU."""

    @staticmethod
    def take(
        network: torch.nn.Module,
        device: torch.device,
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> "FrozenCopy":
        """Copy before `accelerator.prepare`, so that ZeRO-3 does not shard the copy."""
        frozen = copy.deepcopy(network).requires_grad_(False).eval()
        return FrozenCopy(frozen.to("cpu" if offload else device, dtype), device, offload)

    @contextmanager
    def of(self, network: Any) -> Iterator[Any]:
        if self.offload:
            self.network.to(self.device)
        try:
            yield self._call
        finally:
            if self.offload:
                self.network.to("cpu")

    def _call(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Sequences are brought to the copy's dtype; times, one a song, would lose too much."""
        dtype = next(self.network.parameters()).dtype

        def fit(value: Any) -> Any:
            sequence = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
            return value.to(dtype) if sequence else value

        made = self.network(fit(x), *map(fit, args), **{name: fit(value) for name, value in kwargs.items()})
        return made if made.dtype == dtype == x.dtype else made.to(torch.promote_types(made.dtype, x.dtype))

    def follow(self, network: Any, step: int) -> None:
        """It stays where it is."""


@dataclass
class Following:
    """The policy's network with trained weights of its own, which follow the policy's.

    With `every` they are set to the policy's after so many steps (TR-DPO's hard update: Gorbatovski et al. 2024).
    Else they are a moving average (Linear-DPO's reference, DiffusionNFT's old policy). Kept in at least fp32: in
    bf16 an average with decay 0.995 would stand still.
    """

    unwrap: Callable[[Any], Any]
    weights: dict[str, Tensor]
    """By name in the network; all that is trained, so only the adapter with LoRA."""
    decay: float = 0.995
    ramp: float = 0.0
    """With r > 0 the decay after step s is min(r s, decay)."""
    every: int = 0

    @staticmethod
    def start(
        network: torch.nn.Module,
        device: torch.device,
        unwrap: Callable[[Any], Any],
        *,
        decay: float = 0.995,
        ramp: float = 0.0,
        every: int = 0,
    ) -> "Following":
        """Where the policy is now."""
        weights = {name: _wide(p).to(device, copy=True) for name, p in _trained(network).items()}
        return Following(unwrap, weights, decay, ramp, every)

    @contextmanager
    def of(self, network: Any) -> Iterator[Any]:
        bare = self.unwrap(network)
        weights = {name: self.weights[name].to(p.dtype) for name, p in _trained(bare).items()}
        yield lambda *args, **kwargs: functional_call(bare, weights, args, kwargs)

    @torch.no_grad()
    def follow(self, network: Any, step: int) -> None:
        """After optimiser step `step`, counted from 1."""
        if self.every and step % self.every:
            return
        keep = 0.0 if self.every else min(self.ramp * step, self.decay) if self.ramp else self.decay
        for name, parameter in _trained(self.unwrap(network)).items():
            self.weights[name].lerp_(parameter.to(self.weights[name]), 1 - keep)

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            self.weights[name].copy_(value)


def _trained(network: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _wide(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


@dataclass
class ErrorCache:
    """The reference's errors of (example, draw) pairs met before: while they last, its forward pass is saved.

    A draw is one of `draws` fixed combinations of timestep, noise and dropped conditions an example. Filled as
    examples come; worth it once they come round more often than there are draws.
    """

    draws: int
    errors: dict[str, Tensor]
    """[member], on the CPU, by `grid_key`."""

    def lookup(self, keys: tuple[str, ...], device: torch.device) -> Tensor | None:
        """[example, member] if the errors of all keys are stored, else None."""
        if not all(key in self.errors for key in keys):
            return None
        return torch.stack([self.errors[key] for key in keys]).to(device)

    def store(self, keys: tuple[str, ...], errors: Tensor) -> None:
        for key, error in zip(keys, errors.detach().cpu(), strict=True):
            self.errors.setdefault(key, error.clone())

    def state_dict(self) -> dict[str, Tensor]:
        return self.errors

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.errors |= state


def grid_key(example: str, visit: int, draws: int) -> str:
    """The key of all randomness of an example's visit when draws are taken from a grid."""
    return f"{example}|{visit % draws}"
