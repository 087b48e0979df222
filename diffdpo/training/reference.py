"""The reference policy: the network before alignment, for nothing when adapters are trained."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class AdapterOff:
    """The policy with its adapters switched off is the reference; no second copy of the weights."""

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


@dataclass(frozen=True)
class FrozenCopy:
    """A second network that never changes. Exact (margin 0 at step 0) only in the policy's own dtype."""

    network: torch.nn.Module

    @staticmethod
    def take(network: torch.nn.Module, device: torch.device) -> "FrozenCopy":
        """Copy before `accelerator.prepare`, so that ZeRO-3 does not shard the copy."""
        frozen = copy.deepcopy(network).to(device).requires_grad_(False).eval()
        return FrozenCopy(frozen)

    @contextmanager
    def of(self, network: Any) -> Iterator[Any]:
        yield self.network
