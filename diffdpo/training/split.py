"""Split backward: the gradient of a loss on several songs, one song at a time through backward.

A loss depends on the policy through its velocities alone. They are computed song by song without gradient; the loss
of these values gives its derivative by each velocity; then each song goes through the network once more, and this
derivative backward through it. The sum is the gradient of the loss, exactly, whatever the objective: a pair needs
the activations of one song. It costs one more forward pass of the policy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from diffdpo.models.base import SongModel
from diffdpo.training.step import Standards as Standards
from diffdpo.training.step import (
    StepNoise,
    StepRows,
    auxiliary_velocities,
    joint_velocity,
    measure_outputs,
    row_velocity,
)
from diffdpo.training.step_rows import cut_rows
from diffdpo.types import Batch, LossOutput, Objective, ObjectiveState, Outputs


def split_backward(
    accelerator: Accelerator,
    model: SongModel,
    policy: Any,
    batch: Batch,
    objective: Objective,
    noise: StepNoise,
    *,
    standards: Standards,
    objective_state: ObjectiveState | None = None,
) -> tuple[Outputs, LossOutput]:
    """Add the gradient of the mean loss of a batch to the parameters; what the objective saw, and its result.

    Under accelerate's `accumulate`: gradients are reduced over processes with the last song only.
    """
    with (
        accelerator.autocast()
    ):  # left before a gradient is needed: it remembers weights that were cast without
        parts, length = cut_rows(model, batch, noise, is_single=True), batch.latents.shape[2]
        with torch.no_grad():
            velocity = joint_velocity(model, policy, parts, length)
        v = {"policy": velocity.to(torch.promote_types(velocity.dtype, torch.float32)).requires_grad_()}
        v |= auxiliary_velocities(
            model, policy, standards.reference, parts, objective,
            length=length, old=standards.old, has_errors=standards.cached is not None,
        )  # fmt: skip
        values = measure_outputs(batch, noise, parts, v, objective, standards.cached)
    result = objective(replace(values, state=objective_state or {}))
    (slopes,) = torch.autograd.grad((result.loss * batch.weight).mean(), v["policy"])
    backward_rows(accelerator, model, policy, parts, slopes)
    return _detach(values), replace(result, loss=result.loss.detach())


def backward_rows(
    accelerator: Accelerator,
    model: SongModel,
    policy: Any,
    parts: Sequence[StepRows],
    slopes: Float[Tensor, "row frame channel"],
) -> None:
    """Each row through the policy, and its slope, the loss's derivative by its velocity, backward through it."""
    last = len(parts) - 1
    for number, (part, padded_slope) in enumerate(zip(parts, slopes.split(1), strict=True)):
        slope = padded_slope[:, : part.x.shape[1]]
        with accumulate_only(accelerator, policy, active=number < last):
            with accelerator.autocast():
                velocity = row_velocity(model, policy, part)
            accelerator.backward((velocity.to(slope.dtype) * slope).sum())


@contextmanager
def accumulate_only(accelerator: Accelerator, policy: Any, *, active: bool) -> Iterator[None]:
    """Backward passes in it add to the gradients and neither reduce them over processes nor end the step."""
    if not active or not accelerator.sync_gradients:
        yield
        return
    accelerator.gradient_state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(policy):
            yield
    finally:
        accelerator.gradient_state._set_sync_gradients(True)


def _detach(values: Outputs) -> Outputs:
    """The errors without the graph of the loss, and without the tensors of the size of the songs."""
    plain: Mapping[str, Any] = {
        name: value.detach() if isinstance(value, Tensor) else value for name, value in vars(values).items()
    }
    return replace(Outputs(**plain), velocities=None, frame_errors=None)
