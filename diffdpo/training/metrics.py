"""What is logged of a step: means over its examples, over stretches of time, and over the axes of its pairs.

A mean over all timesteps hides what matters: reward hacking begins at high noise, where errors hardly restrain the
policy, and a winner whose error rises at one end of the path can be outweighed by the other end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from diffdpo.types import LossOutput

BINNED = (
    "winner_gain", "loser_gain", "margin", "accuracy", "gradient_factor", "saturated", "loser_scale", "error",
)  # fmt: skip
"""Metrics that are logged for stretches of t as well."""
PER_AXIS = "accuracy"
"""Over the pairs that were chosen on one axis: how often the policy prefers their winner."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Losses and metrics of one micro-batch."""

    result: LossOutput
    t: Float[Tensor, " example"]
    axes: tuple[str, ...] = ()
    """Of each example; empty where pairs name none."""


def step_means(
    accelerator: Accelerator, records: Sequence[StepRecord], *, bins: int, axes: Sequence[str]
) -> dict[str, float]:
    """Means over all examples of the step on all processes, in one reduction.

    `axes` are all that the data knows, in one order on all processes. A bin or an axis that no example of this
    step fell into has no entry.
    """
    t = torch.cat([s.t.detach() for s in records]).double()
    labels = [axis for s in records for axis in (s.axes or ("",) * len(s.t))]
    names = ["loss", *records[0].result.metrics]
    values = [torch.cat([s.result.loss.detach() for s in records]).double()]
    values += [torch.cat([s.result.metrics[name].detach() for s in records]).double() for name in names[1:]]
    known = dict(zip(names, values, strict=True))
    masked = {name: (value, torch.ones_like(value)) for name, value in known.items()}
    for name in BINNED:
        for low, high in ((k / bins, (k + 1) / bins) for k in range(bins if name in known else 0)):
            inside = (t >= low) & ((t < high) | (high == 1.0))
            masked[f"{name}/t{low:.2f}-{high:.2f}"] = (known[name], inside.double())
    for axis in axes if PER_AXIS in known else ():
        chosen = torch.tensor([label == axis for label in labels], device=t.device).double()
        masked[f"{PER_AXIS}/{axis}"] = (known[PER_AXIS], chosen)
    sums = torch.stack(
        [torch.stack([(value * weight).sum(), weight.sum()]) for value, weight in masked.values()]
    )
    total: Any = accelerator.reduce(sums, "sum")
    return {
        name: value / count for name, (value, count) in zip(masked, total.tolist(), strict=True) if count > 0
    }
