"""Memory on each of several devices: what DDP copies and ZeRO shards."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from diffdpo.checks import check_range
from diffdpo.training.live_bytes import tensor_bytes

GIB = 2**30


@dataclass(frozen=True)
class Deployment:
    """How many processes train, with which stage of DeepSpeed's ZeRO, and how large a group of songs is."""

    processes: int = 1
    zero_stage: int = 0
    group_size: int = 4

    def __post_init__(self) -> None:
        check_range(self, "processes", "group_size", low=1)
        check_range(self, "zero_stage", low=0, high=3)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each device, the largest of each kind; they do not all occur at the same moment as `peak` does."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    """All else that a step makes: activations, casts of weights, latents and conditions."""
    peak: int

    def lines(self) -> list[str]:
        """A table in GiB."""
        return [f"{field.name:12}{getattr(self, field.name) / GIB:10.3f} GiB" for field in fields(self)]


def shard_memory(whole: MemoryEstimate, deployment: Deployment, largest_block: int) -> MemoryEstimate:
    """The memory on each of several devices, by what DDP copies and ZeRO shards (Rajbhandari et al. 2020).

    DDP keeps gradients in buckets beside their tensors. Every stage of ZeRO shards the optimiser's state, to which
    DeepSpeed adds a copy of the trained weights in fp32; stage 2 shards gradients too, stage 3 weights as well, of
    which the largest block is gathered at a time. A frozen copy is not sharded.
    """
    n, stage = deployment.processes, deployment.zero_stage
    if stage == 0:
        buckets = whole.gradients if n > 1 else 0
        return replace(whole, gradients=whole.gradients + buckets, peak=whole.peak + buckets)
    optimizer = math.ceil((whole.optimizer + whole.gradients) / n)
    gradients = math.ceil(whole.gradients / n) if stage >= 2 else whole.gradients
    weights = (
        min(whole.weights, math.ceil(whole.weights / n) + largest_block) if stage == 3 else whole.weights
    )
    saved = (whole.optimizer - optimizer) + (whole.gradients - gradients) + (whole.weights - weights)
    return replace(whole, optimizer=optimizer, gradients=gradients, weights=weights, peak=whole.peak - saved)


def largest_block_bytes(network: Any) -> int:
    """Bytes of the largest of the blocks that a network repeats; 0 where it names none."""
    names = getattr(network, "_repeated_blocks", None) or ()
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    return max((tensor_bytes(list(block.parameters())) for block in blocks), default=0)
