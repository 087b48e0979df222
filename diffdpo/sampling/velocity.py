"""The velocity a solver follows: the network, guided, and extrapolated where it hardly changes.

Each function makes a `Velocity` of another `Velocity` or of the network. All memory of a row is in the state: the
functions have none.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo.flow import Latents, broadcast
from diffdpo.models.base import Condition, SongModel, take
from diffdpo.sampling.conditions import ConditionBatch
from diffdpo.sampling.guidance import Branches, Guidance, dot
from diffdpo.sampling.knobs import Knob, active_knobs
from diffdpo.sampling.trajectory import RowTimes, State, Velocity

Index = Int[Tensor, " row"]
StateRows = Int[Tensor, " _"]
"""StateRows of a state, some or all of them."""
SampleMask = Bool[Tensor, "sample frame"]
"""A mask with a row for each sample; `state["row"]` names the samples of the rows of a state."""
CPU_FRAMES = 2048
"""Frames in one forward pass on a CPU: with more, activations leave its cache and it gets slower. A GPU takes
all."""


Evaluate = Callable[[Latents, RowTimes, Index], Latents]
"""Velocities at (x, t) under the given rows of a ConditionBatch."""


class BranchValues(NamedTuple):
    """The velocities of both branches of guidance in some rows of a state."""

    cond: Float[Tensor, "cond_row frame channel"]
    """For the prompt, in the rows that were asked for."""
    uncond: Float[Tensor, "uncond_row frame channel"]
    """For the negative prompt, or without a prompt, likewise."""
    extra: Float[Tensor, "cond_row frame channel"] | None
    """What is added behind guidance."""
    state: State
    """With the evaluations counted."""


BranchVelocities = Callable[[Latents, RowTimes, State, StateRows, StateRows], BranchValues]
"""Both branches of guidance at (x, t): of the rows of the state in the first index with the prompt, of those in the
second without."""


def plain_branches(evaluate: Evaluate, conditions: ConditionBatch) -> BranchVelocities:
    """Both branches of one network, evaluated together."""

    def branches(
        x: Latents, t: RowTimes, state: State, cond_rows: StateRows, uncond_rows: StateRows
    ) -> BranchValues:
        samples, rows = state["row"], torch.cat([cond_rows, uncond_rows])
        places = torch.cat([conditions.cond[samples[cond_rows]], conditions.uncond[samples[uncond_rows]]])
        v = evaluate(x[rows.to(x.device)], t[rows], places)
        count = len(cond_rows)
        return BranchValues(v[:count], v[count:], None, count_evaluations(state, rows))

    return branches


def count_evaluations(state: State, rows: StateRows) -> State:
    """The state with an evaluation more for each time that a row is named."""
    return state | {"nfe": state["nfe"] + torch.bincount(rows, minlength=len(state["nfe"]))}


def network_velocity(model: SongModel, network: Any, conditions: ConditionBatch) -> Evaluate:
    """The network's velocity, in passes of at most CPU_FRAMES frames on a CPU."""
    last: list[tuple[Index, Condition]] = [(torch.arange(len(conditions.frames)), conditions.condition)]

    def gather(rows: Index) -> Condition:
        """The condition of some rows; that of the last call again if they are the same."""
        if not torch.equal(rows, last[-1][0]):
            last[1:] = [(rows, take(conditions.condition, rows))]
        return last[-1][1]

    def evaluate(x: Latents, t: RowTimes, rows: Index) -> Latents:
        condition, count = gather(rows), len(rows)
        size = count if x.device.type != "cpu" else max(1, CPU_FRAMES // x.shape[1])
        parts = [slice(start, start + size) for start in range(0, count, size)]
        velocities = [
            model.velocity(
                network,
                x[part],
                t[part],
                {name: tensor[part] for name, tensor in condition.items()},
                conditions.frames[rows[part]],
            )
            for part in parts
        ]
        return torch.cat(velocities)

    return evaluate


def initial_state(samples: Index, like: Latents, guidance: Guidance, cached: bool) -> State:
    """The state of rows at noise. Memory that no part of the velocity uses is not allocated."""
    count = len(samples)
    state: State = {"row": samples, "nfe": torch.zeros(count, dtype=torch.long)}
    if guidance.active and guidance.guider.stateful:
        state["guidance.memory"] = torch.zeros_like(like)
    if guidance.active and guidance.every > 1:
        state["guidance.calls"] = torch.zeros(count, dtype=torch.long)
        state["guidance.ready"] = torch.zeros(count, dtype=torch.bool)
        state["guidance.offset"] = torch.zeros_like(like)
    if cached:
        state["cache.points"] = torch.zeros(count, dtype=torch.long)
        state["cache.t"] = torch.zeros(count, 2, dtype=torch.float64)
        state["cache.v"] = torch.zeros(count, 2, *like.shape[1:]).to(like)
    return state


def put_rows(base: Tensor, index: Index, values: Tensor) -> Tensor:
    """A copy of `base` with other rows at `index`."""
    if len(index) == len(base):
        return values
    copy = base.clone()
    copy[index.to(base.device)] = values
    return copy


def guided_velocity(branches: BranchVelocities, guidance: Guidance, mask: SampleMask) -> Velocity:
    """Guided velocities. `mask` has a row for each sample. Which rows to guide is decided on the CPU, without
    a wait for the GPU."""

    def velocity(x: Latents, t: RowTimes, state: State) -> tuple[Latents, State]:
        uncond_mask = _uncond_mask(t, state, guidance)
        index = uncond_mask.nonzero().squeeze(1)
        cond, uncond, extra, state = branches(x, t, state, torch.arange(len(t)), index)
        v = cond
        if len(index):
            v, state = _combine(cond, uncond, x, t, index, state, guidance, mask)
        if "guidance.offset" in state:
            state = state | {"guidance.calls": state["guidance.calls"] + 1}
            reuse = broadcast(_guidance_mask(t, guidance) & ~uncond_mask).to(x.device)
            v = torch.where(reuse, v + state["guidance.offset"], v)
        return (v if extra is None else v + extra), state

    return velocity


def _guidance_mask(t: RowTimes, guidance: Guidance) -> Bool[Tensor, " row"]:
    """Whether a row is guided at its time."""
    return (t >= guidance.low) & (t <= guidance.high) & guidance.active


def _uncond_mask(t: RowTimes, state: State, guidance: Guidance) -> Bool[Tensor, " row"]:
    """Whether a row's unconditional velocity has to be computed now."""
    guidance_mask = _guidance_mask(t, guidance)
    if "guidance.offset" not in state:
        return guidance_mask
    is_turn = state["guidance.calls"] % guidance.every == 0
    return guidance_mask & (is_turn | ~state["guidance.ready"])


def _combine(
    cond: Latents,
    uncond: Float[Tensor, "guided frame channel"],
    x: Latents,
    t: RowTimes,
    index: Int[Tensor, " guided"],
    state: State,
    guidance: Guidance,
    mask: SampleMask,
) -> tuple[Latents, State]:
    """The velocity, guided in the rows at `index`, and the state with the guider's memory and offset."""
    rows = index.to(x.device)
    memory = state.get("guidance.memory")
    branches = Branches(cond[rows], uncond, x[rows], t[index], mask[state["row"][index].to(mask.device)])
    v, memory_rows = guidance.guider(branches, guidance.scale, cond[:0] if memory is None else memory[rows])
    state = dict(state)
    if memory is not None:
        state["guidance.memory"] = put_rows(memory, index, memory_rows)
    if "guidance.offset" in state:
        state["guidance.offset"] = put_rows(state["guidance.offset"], index, v - branches.cond)
        ready = torch.ones(len(index), dtype=torch.bool)
        state["guidance.ready"] = put_rows(state["guidance.ready"], index, ready)
    return put_rows(cond, index, v), state


def cached_velocity(
    velocity: Velocity, threshold: float, mask: SampleMask, knobs: Sequence[Knob] = ()
) -> Velocity:
    """A velocity that is extrapolated where it is expected to have changed little since it was last computed.

    The expected change of a row follows from its velocities at the last two times they were computed: the first
    term of TaylorSeer (Liu et al. 2025), at times chosen as in EasyCache (Zhou et al. 2025). Where other knobs act
    than at these times it is computed.
    """
    if not threshold:
        return velocity

    def extrapolate_or_compute(x: Latents, t: RowTimes, state: State) -> tuple[Latents, State]:
        stale_mask = _expected_change(t, state, mask) >= threshold
        for earlier in state["cache.t"].unbind(1) if knobs else ():
            stale_mask |= (active_knobs(knobs, t) != active_knobs(knobs, earlier)).any(1)
        index = stale_mask.nonzero().squeeze(1)
        v = _extrapolate(t, state)
        if len(index):
            part = take(state, index)
            v_new, part = velocity(x[index.to(x.device)], t[index], part)
            v = put_rows(v, index, v_new)
            times = torch.stack([part["cache.t"][:, 1], t[index]], 1)
            velocities = torch.stack([part["cache.v"][:, 1], v_new], 1)
            points = part["cache.points"] + 1
            part = part | {"cache.t": times, "cache.v": velocities, "cache.points": points}
            state = {name: put_rows(state[name], index, part[name]) for name in state}
        return v, state

    return extrapolate_or_compute


def _expected_change(t: RowTimes, state: State, mask: SampleMask) -> Float[Tensor, " row"]:
    """The share by which each row's velocity is expected to have changed; infinite with fewer than two points."""
    (t0, t1), (v0, v1) = state["cache.t"].unbind(1), state["cache.v"].unbind(1)
    rows = mask[state["row"].to(mask.device)]
    change, size = (dot(v, v, rows).sqrt() for v in (v1 - v0, v1))
    share = (change / size.clamp(min=1e-8)).cpu().double() * (t - t1) / (t1 - t0)
    return share.where(state["cache.points"] >= 2, torch.inf)


def _extrapolate(t: RowTimes, state: State) -> Latents:
    """The velocity at t on the line through the last two that were computed."""
    (t0, t1), (v0, v1) = state["cache.t"].unbind(1), state["cache.v"].unbind(1)
    slope = ((t - t1) / (t1 - t0)).nan_to_num(0.0, 0.0, 0.0)
    return v1 + broadcast(slope).to(v1) * (v1 - v0)


def clamped_velocity(velocity: Velocity, latents: Latents, keep_mask: SampleMask) -> Velocity:
    """A velocity that takes given frames straight to their latents: (x - song) / t, noise - song on a
    straight path.

    `latents` and `keep_mask` have a row for each sample.
    """
    if not keep_mask.any():
        return velocity

    def clamp(x: Latents, t: RowTimes, state: State) -> tuple[Latents, State]:
        v, state = velocity(x, t, state)
        samples = state["row"]
        song, keep = latents[samples].to(x), keep_mask[samples].to(x.device)
        straight = (x - song) / broadcast(t.clamp(min=1e-9)).to(x)
        return torch.where(keep[..., None], straight, v), state

    return clamp


def with_song_estimate(velocity: Velocity) -> Velocity:
    """A velocity that writes the estimate of the song, x - t v, into the state for hooks that score songs."""

    def estimate(x: Latents, t: RowTimes, state: State) -> tuple[Latents, State]:
        v, state = velocity(x, t, state)
        return v, state | {"song": x - broadcast(t).to(x) * v}

    return estimate
