"""Split backward: the gradient of a loss on several songs, one song at a time through backward.

A loss depends on the policy through its velocities alone. All but the longest song go through the network without
gradient, then the longest with its activations; the loss of these values gives its derivative by each velocity,
which goes backward through the longest song; then each of the others goes through the network once more, and its
derivative backward. The sum is the gradient of the loss, exactly, whatever the objective. A pair needs the
activations of one song, for one more forward pass of its shorter song.
"""

from collections.abc import Iterator, Mapping
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
    auxiliary_velocities,
    measure_outputs,
    row_velocity,
)
from diffdpo.training.step_rows import cut_rows, join_rows
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
    with accelerator.autocast(), torch.no_grad():
        parts, length = cut_rows(model, batch, noise, is_single=True), batch.latents.shape[2]
        v = auxiliary_velocities(
            model, policy, standards.reference, parts, objective,
            length=length, old=standards.old, has_errors=standards.cached is not None,
        )  # fmt: skip
        longest = max(range(len(parts)), key=lambda number: parts[number].x.shape[1])
        others = [number for number in range(len(parts)) if number != longest]
        velocities = {number: row_velocity(model, policy, parts[number]) for number in others}
    with accumulate_only(accelerator, policy, active=bool(others)):
        with (
            accelerator.autocast()
        ):  # another one: the first remembers weights that were cast without gradient
            velocity = row_velocity(model, policy, parts[longest])
        velocities[longest] = velocity.detach()
        joined = join_rows([velocities[number] for number in range(len(parts))], parts, length)
        v["policy"] = joined.to(torch.promote_types(joined.dtype, torch.float32)).requires_grad_()
        with accelerator.autocast():
            values = measure_outputs(batch, noise, parts, v, objective, standards.cached)
        result = objective(replace(values, state=objective_state or {}))
        (slopes,) = torch.autograd.grad((result.loss * batch.weight).mean(), v["policy"])
        values = _detach(values)
        del v, joined, velocities  # before the largest activations' backward pass
        _backward(accelerator, velocity, slopes[list(parts[longest].places)])
    for number in others:
        with accumulate_only(accelerator, policy, active=number != others[-1]):
            with accelerator.autocast():
                velocity = row_velocity(model, policy, parts[number])
            _backward(accelerator, velocity, slopes[list(parts[number].places)])
    return values, replace(result, loss=result.loss.detach())


def _backward(accelerator: Accelerator, velocity: Tensor, slopes: Float[Tensor, "row frame channel"]) -> None:
    """The derivative of the loss by a song's velocity, backward through the song."""
    slope = slopes[:, : velocity.shape[1]]
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
