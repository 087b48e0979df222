"""Which examples of a micro-batch go through the networks together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from diffdpo.training.config import TrainConfig
from diffdpo.training.strategy import strategy_of

GPU_FRAMES = 8192
"""Frames at once on a GPU unless `train.frames_per_device` says otherwise: as many rows as its matrix products need
to be efficient. Not measured."""


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """How a micro-batch goes through the networks."""

    passes: Sequence[Sequence[int]]
    """The examples of each pass."""
    is_split: bool = False
    """Every song goes through backward alone."""
    is_single: bool = False
    """No songs share a call of a network."""


def choose_plan(
    accelerator: Accelerator, cfg: TrainConfig, lengths: Sequence[Sequence[int]], window: int = 0
) -> PassPlan:
    """The passes of a micro-batch whose members have these lengths; `window` is that of a network with a fixed one.

    Pairs and groups above `train.frames_per_device` go through backward song by song. Where processes shard
    gradients or weights, they call networks and backward in step with each other, whatever their songs: every
    example is a pass, every song a call, and if one process needs a split backward, all do it.
    """
    budget = cfg.frames_per_device
    sizes = [sum(window or n for n in members) for members in lengths]
    is_split = cfg.split_backward
    if budget and len(lengths[0]) > 1:
        is_split = is_split or max(sizes) > budget
    if is_in_step(accelerator):
        if budget and not cfg.split_backward:
            vote = torch.tensor(float(is_split), device=accelerator.device)
            is_split = bool(accelerator.reduce(vote, "sum") > 0)
        passes = [[example] for example in range(len(lengths))]
        return PassPlan(passes=passes, is_split=is_split, is_single=True)
    if not budget and accelerator.device.type == "cuda":
        budget = GPU_FRAMES
    return PassPlan(passes=plan_passes(lengths, budget, window), is_split=is_split)


def is_in_step(accelerator: Accelerator) -> bool:
    """Whether all processes must go equally often through the network: ZeRO and FSDP2."""
    return strategy_of(accelerator).needs_equal_passes


def plan_passes(lengths: Sequence[Sequence[int]], budget: int, window: int = 0) -> list[list[int]]:
    """The examples of each pass, whose members have these lengths, in the order of the micro-batch.

    Examples of the same lengths share a pass, up to `budget` frames in all; 0: every example alone, as suits a CPU,
    on which stacked songs are no faster. Others would be networks' calls of their own anyway. In a network of a
    fixed `window` all songs are so long. An example above the budget has a pass to itself.
    """
    sizes = [tuple(window or n for n in members) for members in lengths]
    passes: list[list[int]] = []
    open_pass: dict[tuple[int, ...], list[int]] = {}
    for example, size in enumerate(sizes):
        group = open_pass.get(size)
        if group is None or (len(group) + 1) * sum(size) > budget:
            open_pass[size] = group = []
            passes.append(group)
        group.append(example)
    return passes
