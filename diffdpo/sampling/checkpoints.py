"""Solver steps with gradient checkpoints: the activations of one step in memory, not those of all."""

from functools import partial

from diffdpo.gradient_checkpoints import checkpoint_call
from diffdpo.sampling.trajectory import Step


def checkpoint_step(step: Step) -> Step:
    """A solver step that keeps its inputs alone for the backward pass, and runs once more in it."""
    return partial(checkpoint_call, step)
