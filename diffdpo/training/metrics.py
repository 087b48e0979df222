"""The metrics of a step: means over its examples, over intervals of t, and over the axes of its pairs.

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

from diffdpo.devices import widest_float
from diffdpo.types import LossOutput

METRICS_PER_BIN = (
    "winner_gain", "loser_gain", "margin", "accuracy", "gradient_factor", "saturated", "loser_scale", "error",
)  # fmt: skip
"""Metrics that are logged for intervals of t as well."""
PER_AXIS = "accuracy"
"""Over the pairs that were chosen on one axis: how often the policy prefers their winner."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Losses and metrics of one micro-batch."""

    result: LossOutput
    t: Float[Tensor, " example"]
    axes: tuple[str, ...] = ()
    """The axis of each example; empty where pairs name none."""


def step_means(
    accelerator: Accelerator, records: Sequence[StepRecord], *, bins: int, axes: Sequence[str]
) -> dict[str, float]:
    """Means over all examples of the step on all processes, in one reduction.

    `axes` are all axes of the data, in one order on all processes. A bin or an axis without an example in this step
    has no entry.
    """
    t = torch.cat([s.t.detach() for s in records])
    t = t.to(widest_float(t.device))
    labels = [axis for s in records for axis in (s.axes or ("",) * len(s.t))]
    names = ["loss", *records[0].result.metrics]
    values = [torch.cat([s.result.loss.detach() for s in records]).to(t)]
    values += [torch.cat([s.result.metrics[name].detach() for s in records]).to(t) for name in names[1:]]
    columns = dict(zip(names, values, strict=True))
    terms = {name: (value, torch.ones_like(value)) for name, value in columns.items()}
    for name in METRICS_PER_BIN:
        for low, high in ((k / bins, (k + 1) / bins) for k in range(bins if name in columns else 0)):
            inside = (t >= low) & ((t < high) | (high == 1.0))
            terms[f"{name}/t{low:.2f}-{high:.2f}"] = (columns[name], inside.to(t))
    for axis in axes if PER_AXIS in columns else ():
        on_axis = torch.tensor([label == axis for label in labels], device=t.device).to(t)
        terms[f"{PER_AXIS}/{axis}"] = (columns[PER_AXIS], on_axis)
    sums = torch.stack(
        [torch.stack([(value * weight).sum(), weight.sum()]) for value, weight in terms.values()]
    )
    total: Any = accelerator.reduce(sums, "sum")
    return {
        name: value / count for name, (value, count) in zip(terms, total.tolist(), strict=True) if count > 0
    }
