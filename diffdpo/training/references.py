"""Auxiliary policies: the reference that the policy is compared with, and the policy that sampled the songs.

The context manager `of(policy)` gives a callable with the signature of the network. `follow(policy, step)` comes
after each optimiser step: a copy that follows the policy is updated, the others stay as they are.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import functional_call


@runtime_checkable
class AuxiliaryPolicy(Protocol):
    """A policy beside the trained one: adapters off, a frozen copy, or a copy that follows the policy."""

    def of(self, network: Any) -> AbstractContextManager[Any]: ...

    def follow(self, network: Any, step: int) -> None: ...


@dataclass(frozen=True)
class AdapterOff:
    """The policy with its adapters switched off, which needs no second copy of the weights."""

    unwrap: Callable[[Any], Any]
    """`accelerator.unwrap_model`: from the module prepared by accelerate back to the network."""

    @contextmanager
    def of(self, network: Any) -> Iterator[Any]:
        bare = self.unwrap(network)
        bare.disable_adapters()
        try:
            yield bare
        finally:
            bare.enable_adapters()

    def follow(self, network: Any, step: int) -> None:
        """Nothing changes: this policy is fixed."""


@dataclass(frozen=True)
class FrozenCopy:
    """A second network that never changes. Exact (margin 0 at step 0) only in the policy's own dtype."""

    network: torch.nn.Module
    device: torch.device
    """The device of the forward pass."""
    offload: bool = False
    """Keep the copy on the CPU between forward passes: slower, and no memory of the GPU is held."""

    @staticmethod
    def take(
        network: torch.nn.Module,
        device: torch.device,
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> "FrozenCopy":
        """Copy before `accelerator.prepare`, so that ZeRO-3 does not shard the copy."""
        align_weights(network)
        frozen_network = copy.deepcopy(network).requires_grad_(False).eval()
        return FrozenCopy(frozen_network.to("cpu" if offload else device, dtype), device, offload)

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
        """A forward pass: sequences are cast to the copy's dtype; times, one a song, keep their own precision."""
        dtype = next(self.network.parameters()).dtype

        def to_dtype(value: Any) -> Any:
            sequence = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
            return value.to(dtype) if sequence else value

        output = self.network(
            to_dtype(x), *map(to_dtype, args), **{name: to_dtype(value) for name, value in kwargs.items()}
        )
        return (
            output
            if output.dtype == dtype == x.dtype
            else output.to(torch.promote_types(output.dtype, x.dtype))
        )

    def follow(self, network: Any, step: int) -> None:
        """Nothing changes: this policy is fixed."""


def align_weights(network: torch.nn.Module) -> None:
    """Move weights on the CPU to addresses that torch would have chosen itself, multiples of 64 bytes.

    Those of a mapped file may lie elsewhere, where matrix products round differently: the policy and its copy would
    not be equal.
    """
    for parameter in network.parameters():
        if parameter.device.type == "cpu" and type(parameter.data) is Tensor and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


@dataclass
class MovingCopy:
    """The policy's network with a copy of its trained weights, which follows them.

    With `every` the copy is set to the policy's weights after so many steps (TR-DPO's hard update: Gorbatovski et
    al. 2024); else it is their moving average (Linear-DPO's reference, DiffusionNFT's old policy). Weights are kept
    in at least fp32: in bf16 an average with decay 0.995 would not change.
    """

    unwrap: Callable[[Any], Any]
    weights: dict[str, Tensor]
    """Weights by their names in the network; with LoRA only the adapter's."""
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
    ) -> "MovingCopy":
        """A copy of the policy's weights as they are now."""
        weights = {name: _promote(p).to(device, copy=True) for name, p in _trainable(network).items()}
        return MovingCopy(unwrap, weights, decay, ramp, every)

    @contextmanager
    def of(self, network: Any) -> Iterator[Any]:
        bare = self.unwrap(network)
        weights = {name: self.weights[name].to(p.dtype) for name, p in _trainable(bare).items()}
        yield lambda *args, **kwargs: functional_call(bare, weights, args, kwargs)

    @torch.no_grad()
    def follow(self, network: Any, step: int) -> None:
        """Update the copy after optimiser step `step`, counted from 1."""
        if self.every and step % self.every:
            return
        decay = 0.0 if self.every else min(self.ramp * step, self.decay) if self.ramp else self.decay
        for name, parameter in _trainable(self.unwrap(network)).items():
            self.weights[name].lerp_(parameter.to(self.weights[name]), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            self.weights[name].copy_(value)


def _trainable(network: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _promote(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


@dataclass
class ErrorCache:
    """The reference's errors by example and draw: a forward pass is saved each time a draw recurs.

    A draw is one of `draws` fixed combinations of timestep, noise and dropped conditions of an example. The cache
    is filled during training, and saves time once examples recur more often than there are draws.
    """

    draws: int
    errors: dict[str, Tensor]
    """Errors of shape [member], on the CPU, by `grid_key`."""

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
