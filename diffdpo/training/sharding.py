"""Memory on each of several devices: what DDP copies, and ZeRO and FSDP2 shard."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from diffdpo.checks import check_range
from diffdpo.training.config import check_backend
from diffdpo.training.live_bytes import tensor_bytes
from diffdpo.training.strategy import STRATEGIES, Strategy

GIB = 2**30


@dataclass(frozen=True)
class Deployment:
    """How many processes train, which backend shards their work, and how large a group of songs is."""

    processes: int = 1
    zero_stage: int = 0
    """Stage of DeepSpeed's ZeRO; 0 without."""
    group_size: int = 4
    fsdp2: bool = False
    """Sharded by torch's FSDP2."""
    offload: bool = False
    """The optimiser's state on the CPU; under ZeRO-3 and FSDP2 the weights too."""

    def __post_init__(self) -> None:
        check_range(self, "processes", "group_size", low=1)
        check_range(self, "zero_stage", low=0, high=3)
        check_backend(self.zero_stage, fsdp2=self.fsdp2, offload=self.offload)

    @property
    def strategy(self) -> Strategy:
        """The backend, with its rules."""
        if self.zero_stage:
            return STRATEGIES[f"zero{self.zero_stage}"]
        if self.processes == 1:
            return STRATEGIES["single"]
        return STRATEGIES["fsdp2" if self.fsdp2 else "ddp"]


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
    """The memory on each of several devices, by what its backend copies and shards (Rajbhandari et al. 2020).

    DDP keeps gradients in buckets beside their tensors. Every stage of ZeRO shards the optimiser's state, to which
    DeepSpeed adds a copy of the trained weights in fp32; stage 2 shards gradients too, stage 3 weights as well, of
    which the largest block is gathered at a time. A frozen copy is not sharded. FSDP2 shards all of them, and a
    frozen copy; it has no second copy of the weights, and gathers a block while the one before is still there, and
    its gradients. What is offloaded counts no more.
    """
    n, shards = deployment.processes, deployment.strategy.shards
    if not shards:
        buckets = whole.gradients if n > 1 else 0
        return replace(whole, gradients=whole.gradients + buckets, peak=whole.peak + buckets)
    gathered, offload, is_fsdp = largest_block, deployment.offload, deployment.strategy.is_fsdp
    master = 0 if is_fsdp else whole.gradients
    part = replace(
        whole,
        optimizer=0 if offload else math.ceil((whole.optimizer + master) / n),
        gradients=math.ceil(whole.gradients / n) if "gradients" in shards else whole.gradients,
    )
    if is_fsdp:
        part = replace(
            part,
            gradients=min(whole.gradients, part.gradients + gathered),
            reference=min(whole.reference, (0 if offload else math.ceil(whole.reference / n)) + gathered),
        )
        gathered *= 2
    if "weights" in shards:
        rest = 0 if offload else math.ceil(whole.weights / n)
        part = replace(part, weights=min(whole.weights, rest + gathered))
    kinds = ("optimizer", "gradients", "weights", "reference")
    saved = sum(getattr(whole, kind) - getattr(part, kind) for kind in kinds)
    return replace(part, peak=whole.peak - saved)


def largest_block_bytes(network: Any) -> int:
    """Bytes of the largest of the blocks that a network repeats; 0 where it names none."""
    names = getattr(network, "_repeated_blocks", None) or ()
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    return max((tensor_bytes(list(block.parameters())) for block in blocks), default=0)
