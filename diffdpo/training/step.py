"""From a batch to what the objective sees: the mathematics of one training step, free of plumbing."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo import flow
from diffdpo.models.base import Condition, Inpaints, SongModel, move, require
from diffdpo.randomness import draw_noise, draw_uniform, generator
from diffdpo.training.config import InpaintConfig, TrainConfig
from diffdpo.training.references import grid_key
from diffdpo.types import Batch, FrameErrors, Objective, Outputs, Row, Velocities

CONTEXT = "context"
"""The name in `train.dropout` of the in-painting context, which is no part of any model's condition."""


@runtime_checkable
class AuxiliaryPolicy(Protocol):
    """A policy beside the trained one: adapters off, a frozen copy, or a copy that follows the policy."""

    def of(self, network: Any) -> AbstractContextManager[Any]: ...

    def follow(self, network: Any, step: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StepNoise:
    """The randomness of a batch, drawn for each example and shared by the members of a pair."""

    t: Float[Tensor, " example"]
    noise: Float[Tensor, "example frame channel"]
    drop_masks: Mapping[str, Bool[Tensor, " example"]]
    """For each part of the condition, True for the examples that are trained without it."""
    span: Bool[Tensor, "example frame"]
    """The frames to be generated; all of them unless in-painting is trained."""


def noise_keys(batch: Batch, cfg: TrainConfig) -> tuple[int | str, ...]:
    """The key of each example's randomness: its position, or its place in the grid of cached draws."""
    draws = cfg.reference.cached_draws
    if not draws:
        return batch.positions
    return tuple(grid_key(name, visit, draws) for name, visit in zip(batch.ids, batch.visits, strict=True))


def sample_noise(
    batch: Batch,
    cfg: TrainConfig,
    seed: int,
    times: Sequence[float] | None = None,
    *,
    headroom: int = 0,
) -> StepNoise:
    """Timestep, noise, dropped parts and span as functions of (seed, position in the stream).

    `times` are those of a few-step network, see `LatentSpec.times`; `headroom` are the frames that the model
    adds to the length that a prompt asks for.
    """
    _, _, frames, channels = batch.latents.shape
    lengths = [max(1, rows[0].total_frames - headroom) for rows in batch.rows]
    keys = noise_keys(batch, cfg)
    drop_masks = {
        part: draw_uniform(seed, keys, f"drop-{part}") < probability
        for part, probability in sorted(cfg.dropout.items())
    }
    return StepNoise(
        t=torch.stack(
            [
                cfg.timesteps.draw(generator(seed, key, "timestep"), times, length)
                for key, length in zip(keys, lengths, strict=True)
            ]
        ),
        noise=draw_noise(seed, keys, frames, channels),
        drop_masks=drop_masks,
        span=_sample_spans(batch, cfg.inpaint, keys, seed),
    )


def _sample_spans(
    batch: Batch, inpaint: InpaintConfig | None, keys: Sequence[int | str], seed: int
) -> Bool[Tensor, "example frame"]:
    """One contiguous span an example, of a uniformly drawn share of its frames, at a uniform place."""
    length = batch.latents.shape[2]
    if inpaint is None:
        return torch.ones(len(keys), length, dtype=torch.bool)
    share = draw_uniform(seed, keys, "span-length")
    place = draw_uniform(seed, keys, "span-place")
    frames = batch.frames.amax(1)
    fraction = inpaint.min_fraction + (inpaint.max_fraction - inpaint.min_fraction) * share
    width = (fraction * frames).round().clamp(min=1)
    start = (place * (frames - width + 1)).floor()
    index = torch.arange(length)[None]
    return (index >= start[:, None]) & (index < (start + width)[:, None])


def outputs(
    model: SongModel,
    policy: Any,
    reference: AuxiliaryPolicy | None,
    batch: Batch,
    objective: Objective,
    noise: StepNoise,
    *,
    old: AuxiliaryPolicy | None = None,
    cached: Float[Tensor, "example member"] | None = None,
) -> Outputs:
    """Run exactly the forward passes the objective needs and measure their errors.

    The members of all examples are stacked, winners first, into one forward a network. Everything is on the
    device of `batch.latents`. `cached` are the reference's errors of these examples under this noise, if they were
    measured before: its forward pass is left out. An old policy that is the reference is run once.
    """
    _, members, length, _ = batch.latents.shape
    song, frames = _stack(batch.latents), _stack(batch.frames)
    x_noise, t = noise.noise.repeat(members, 1, 1), noise.t.repeat(members)
    x, target = flow.interpolate(song, x_noise, t), flow.velocity(song, x_noise)
    condition, span = encode_batch(model, batch.rows, batch, noise)
    mask = flow.mask_from_frames(frames, length) & span.repeat(members, 1)

    v = {"policy": model.velocity(policy, x, t, condition, frames)}
    for name, auxiliary in (("reference", reference), ("old", old)):
        if name not in objective.needs or (name == "reference" and cached is not None):
            continue
        assert auxiliary is not None, f"the trainer built no {name} policy for an objective that needs one"
        if name == "old" and auxiliary is reference:
            v[name] = v["reference"]
            continue
        if name == "reference" and batch.reference_rows is not None:
            own_condition, _ = encode_batch(model, batch.reference_rows, batch, noise)
        else:
            own_condition = condition
        with torch.no_grad(), auxiliary.of(policy) as network:
            v[name] = model.velocity(network, x, t, own_condition, frames)

    def unstack(values: Tensor) -> Tensor:
        return rearrange(values, "(member example) ... -> example member ...", member=members)

    per_frame = {name: flow.frame_errors(prediction, target) for name, prediction in v.items()}
    errors: dict[str, Any] = {name: unstack(flow.masked_mean(e, mask)) for name, e in per_frame.items()}
    if cached is not None:
        errors["reference"] = cached
    needs_velocities, needs_frames = "velocities" in objective.needs, "frame_errors" in objective.needs
    return Outputs(
        **errors,
        t=noise.t,
        mask=unstack(mask),
        soft_label=batch.soft_label,
        score=batch.score,
        span=batch.span,
        velocities=Velocities(target=unstack(target), **{n: unstack(p) for n, p in v.items()})
        if needs_velocities
        else None,
        frame_errors=FrameErrors(**{n: unstack(e) for n, e in per_frame.items()}) if needs_frames else None,
    )


def _stack(values: Tensor) -> Tensor:
    return rearrange(values, "example member ... -> (member example) ...")


def encode_batch(
    model: SongModel, rows: Sequence[Sequence[Row]], batch: Batch, noise: StepNoise
) -> tuple[Condition, Bool[Tensor, "example frame"]]:
    """The condition of all members, winners first, after dropout; and the frames on which the error counts.

    In-painting shows the first member outside the span. Where that context is dropped there is nothing to continue,
    so the error counts everywhere.
    """
    device, members = batch.latents.device, batch.latents.shape[1]
    member_rows = [row for member in zip(*rows, strict=True) for row in member]
    condition = move(model.condition(member_rows, batch.latents.shape[2]), device)
    span = noise.span
    if not bool(span.all()):
        require(model, Inpaints)
        inpaints: Any = model
        if CONTEXT in noise.drop_masks:
            span = span | noise.drop_masks[CONTEXT][:, None]
        keep_mask = flow.mask_from_frames(batch.frames[:, 0], span.shape[1]) & ~span
        context = batch.latents[:, 0].repeat(members, 1, 1)
        condition = inpaints.with_context(condition, context, keep_mask.repeat(members, 1))
    for part, drop_mask in noise.drop_masks.items():
        if part != CONTEXT:
            condition = model.without(condition, part, drop_mask.repeat(members))
    return condition, span
