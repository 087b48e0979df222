"""Activation checkpointing: which activations stay for the backward pass, and which are computed again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from diffdpo.checks import check_range

KEPT = ("mm", "addmm", "bmm", "baddbmm", "convolution")
"""Operations whose results stay under `selective`, beside every kernel of attention."""


@dataclass(frozen=True)
class CheckpointingConfig:
    """Activations that are computed again in the backward pass, block by block."""

    kind: Literal["full", "selective"] = "full"
    """full: of a block only the input stays, and it runs forward again. selective: the results of matrix products,
    attention and convolutions stay, and what lies between them is computed again."""
    every: int = 1
    """Checkpoint each block whose number is a multiple of this; 2 for half of the blocks."""

    def __post_init__(self) -> None:
        check_range(self, "every", low=1, prefix="train.checkpointing.")


def enable_checkpointing(network: Any, cfg: CheckpointingConfig | None) -> None:
    """Checkpoint the blocks of a network. Values and gradients are those without; None: nothing changes.

    Blocks are what the network names `_repeated_blocks`; other parts that it can checkpoint are, always.
    """
    if cfg is None:
        return
    blocks = [m for m in network.modules() if type(m).__name__ in (network._repeated_blocks or ())]
    plain = {id(block) for number, block in enumerate(blocks) if number % cfg.every}
    network.enable_gradient_checkpointing(partial(_run_block, plain, cfg.kind))


def _run_block(plain: set[int], kind: str, block: nn.Module, *args: Any) -> Any:
    """A block's output; `plain` are the blocks that keep their activations."""
    if id(block) in plain:
        return block(*args)
    if kind == "full":
        return checkpoint(block, *args, use_reentrant=False)
    return checkpoint(block, *args, use_reentrant=False, context_fn=_selective_contexts)


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_choose_policy)


def _choose_policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what is expensive to compute again."""
    return CheckpointPolicy.MUST_SAVE if is_kept(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def is_kept(operation: Callable[..., Any]) -> bool:
    """Whether `selective` keeps the results of an operation of torch."""
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    name = operation.overloadpacket.__name__.strip("_")
    return name in KEPT or "attention" in name
