"""Calls whose activations are computed again when gradients pass, so that they need not stay in memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def checkpoint_call(function: Callable[..., T], *inputs: Any) -> T:
    """`function(*inputs)`; where gradients pass, only the inputs stay for the backward pass, which calls it again.

    Values and gradients are those of the plain call. The function must be deterministic: no dropout.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: T = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
