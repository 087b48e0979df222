"""From a batch to what the objective sees: the mathematics of one training step, free of plumbing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo import flow
from diffdpo.models.base import Condition, Inpaints, SongModel, move, require, take
from diffdpo.randomness import draw_noise, draw_uniform, generator
from diffdpo.training.config import InpaintConfig, TrainConfig
from diffdpo.training.references import AuxiliaryPolicy as AuxiliaryPolicy
from diffdpo.training.references import grid_key
from diffdpo.training.row_scale import scale_rows
from diffdpo.types import Batch, FrameErrors, Objective, Outputs, Row, Velocities

CONTEXT = "context"
"""The name in `train.dropout` of the in-painting context, which is no part of any model's condition."""


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


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """The rows of a step's forward passes: the members of all examples, winners first, at their noise levels."""

    x: Float[Tensor, "row frame channel"]
    t: Float[Tensor, " row"]
    target: Float[Tensor, "row frame channel"]
    mask: Bool[Tensor, "row frame"]
    """The frames on which the error counts."""
    frames: Int[Tensor, " row"]
    condition: Condition
    reference_condition: Condition
    """The condition for the reference, which may not know all that the policy is told."""
    contrast: Mapping[str, Condition] = field(default_factory=dict)
    """The conditions `plus` and `minus` of a slider."""
    scale: Float[Tensor, " row"] | None = None
    """The strength of the policy's adapter in each row; None: 1 in all."""

    def select(self, index: Int[Tensor, " part"]) -> "StepRows":
        """Some of the rows."""
        own = take(self.condition, index)
        same = self.reference_condition is self.condition
        return StepRows(
            **{name: getattr(self, name)[index] for name in ("x", "t", "target", "mask", "frames")},
            condition=own,
            reference_condition=own if same else take(self.reference_condition, index),
            contrast={name: take(condition, index) for name, condition in self.contrast.items()},
            scale=None if self.scale is None else self.scale[index],
        )


def stack_rows(model: SongModel, batch: Batch, noise: StepNoise) -> StepRows:
    """The rows of a batch under this noise, on the device of `batch.latents`."""
    _, members, length, _ = batch.latents.shape
    song, frames = _stack(batch.latents), _stack(batch.frames)
    x_noise, t = noise.noise.repeat(members, 1, 1), noise.t.repeat(members)
    condition, span = encode_batch(model, batch.rows, batch, noise)
    reference_condition = condition
    if batch.reference_rows is not None:
        reference_condition, _ = encode_batch(model, batch.reference_rows, batch, noise)
    contrast_rows = {"plus": batch.plus_rows, "minus": batch.minus_rows}
    return StepRows(
        x=flow.interpolate(song, x_noise, t),
        t=t,
        target=flow.velocity(song, x_noise),
        mask=flow.mask_from_frames(frames, length) & span.repeat(members, 1),
        frames=frames,
        condition=condition,
        reference_condition=reference_condition,
        contrast={
            name: encode_batch(model, own_rows, batch, noise)[0]
            for name, own_rows in contrast_rows.items()
            if own_rows is not None
        },
        scale=None if batch.scale is None else batch.scale.repeat(members),
    )


def row_velocity(model: SongModel, network: Any, rows: StepRows, name: str = "policy") -> Tensor:
    """The velocity that a network predicts for the rows.

    `reference` sees the reference's condition, `plus` and `minus` those of a slider. The policy's adapter acts at
    the strength of each row, and keeps these strengths until it is called again, or set back with
    `scale_rows(network, None)`: a backward pass under checkpointing runs forward once more.
    """
    condition = {"reference": rows.reference_condition, **rows.contrast}.get(name, rows.condition)
    if name == "policy" and rows.scale is not None:
        scale_rows(network, rows.scale)
    return model.velocity(network, rows.x, rows.t, condition, rows.frames)


def auxiliary_velocities(
    model: SongModel,
    policy: Any,
    reference: AuxiliaryPolicy | None,
    rows: StepRows,
    objective: Objective,
    *,
    old: AuxiliaryPolicy | None = None,
    has_errors: bool = False,
    per_pass: int = 0,
) -> dict[str, Tensor]:
    """The velocities of the reference and the old policy, of which the objective needs some, without gradient.

    `has_errors`: the reference's errors are there already. `per_pass` rows go through a network at a time; 0: all.
    An old policy that is the reference is run once.
    """
    v: dict[str, Tensor] = {}
    contrast = [(name, reference) for name in ("plus", "minus") if "contrast" in objective.needs]
    for name, auxiliary in (("reference", reference), ("old", old), *contrast):
        if name in ("reference", "old") and name not in objective.needs:
            continue
        if name == "reference" and has_errors:
            continue
        assert auxiliary is not None, f"the trainer built no {name} policy for an objective that needs one"
        if name == "old" and auxiliary is reference:
            v[name] = v["reference"]
            continue
        with torch.no_grad(), auxiliary.of(policy) as network:
            v[name] = torch.cat([row_velocity(model, network, r, name) for r in split_rows(rows, per_pass)])
    return v


def split_rows(rows: StepRows, per_pass: int) -> Iterator[StepRows]:
    """The rows in parts of `per_pass`; all of them at once for 0."""
    if not per_pass:
        yield rows
        return
    for index in torch.arange(len(rows.t)).split(per_pass):
        yield rows.select(index.to(rows.x.device))


def measure_outputs(
    batch: Batch,
    noise: StepNoise,
    rows: StepRows,
    v: Mapping[str, Tensor],
    objective: Objective,
    cached: Float[Tensor, "example member"] | None = None,
) -> Outputs:
    """What the objective sees of the velocities `v`, by policy. `cached` are the reference's errors."""
    members = batch.latents.shape[1]

    def unstack(values: Tensor) -> Tensor:
        return rearrange(values, "(member example) ... -> example member ...", member=members)

    per_frame = {
        name: flow.frame_errors(prediction, rows.target)
        for name, prediction in v.items()
        if name not in rows.contrast
    }
    errors: dict[str, Any] = {name: unstack(flow.masked_mean(e, rows.mask)) for name, e in per_frame.items()}
    if cached is not None:
        errors["reference"] = cached
    needs_velocities, needs_frames = "velocities" in objective.needs, "frame_errors" in objective.needs
    return Outputs(
        **errors,
        t=noise.t,
        mask=unstack(rows.mask),
        soft_label=batch.soft_label,
        score=batch.score,
        span=batch.span,
        scale=batch.scale,
        velocities=Velocities(target=unstack(rows.target), **{n: unstack(p) for n, p in v.items()})
        if needs_velocities
        else None,
        frame_errors=FrameErrors(**{n: unstack(e) for n, e in per_frame.items()}) if needs_frames else None,
    )


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
    measured before: its forward pass is left out.
    """
    rows = stack_rows(model, batch, noise)
    v = {"policy": row_velocity(model, policy, rows)}
    v |= auxiliary_velocities(
        model, policy, reference, rows, objective, old=old, has_errors=cached is not None
    )
    return measure_outputs(batch, noise, rows, v, objective, cached)


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
