"""Solver steps whose activations are computed again when gradients pass: one network call in memory, not all."""

import torch
from torch.utils.checkpoint import checkpoint

from diffdpo.flow import Latents
from diffdpo.sampling.trajectory import Noise, RowTimes, State, Step, Velocity


def checkpointed_step(step: Step) -> Step:
    """A solver step that keeps its inputs alone for the backward pass, and runs once more in it.

    Values and gradients are those of `step`, which must be deterministic: networks with dropout are not.
    """

    def run(
        velocity: Velocity, x: Latents, t: RowTimes, t_next: RowTimes, state: State, noise: Noise
    ) -> tuple[Latents, State]:
        if not torch.is_grad_enabled():
            return step(velocity, x, t, t_next, state, noise)
        result: tuple[Latents, State] = checkpoint(
            step, velocity, x, t, t_next, state, noise, use_reentrant=False, preserve_rng_state=False
        )
        return result

    return run
