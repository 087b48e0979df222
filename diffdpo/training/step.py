"""From a batch to what the objective sees: the mathematics of one training step, free of plumbing."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo import flow
from diffdpo.models.base import Condition, SongModel, drop, repeat
from diffdpo.randomness import draw_noise, draw_uniform, generator
from diffdpo.training.config import InpaintConfig, TrainConfig
from diffdpo.training.references import grid_key
from diffdpo.types import Batch, FrameErrors, Objective, Outputs, Velocities


@runtime_checkable
class Reference(Protocol):
    """Another policy beside the trained one: adapters off, a frozen copy, or one that follows."""

    def of(self, network: Any) -> AbstractContextManager[Any]: ...

    def follow(self, network: Any, step: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Draw:
    """All randomness of a batch, one draw an example: members of a pair share it."""

    t: Float[Tensor, " example"]
    noise: Float[Tensor, "example frame channel"]
    dropped: Mapping[str, Bool[Tensor, " example"]]
    span: Bool[Tensor, "example frame"]
    """The frames to be painted in; all of them unless in-painting is trained."""


def keys(batch: Batch, cfg: TrainConfig) -> tuple[int | str, ...]:
    """What the randomness of each example hangs on: its position, or its place in the grid of cached draws."""
    draws = cfg.reference.cached_draws
    if not draws:
        return batch.positions
    return tuple(grid_key(name, visit, draws) for name, visit in zip(batch.ids, batch.visits, strict=True))


def draw(batch: Batch, cfg: TrainConfig, seed: int) -> Draw:
    """Timestep, noise, condition dropout and span as functions of (seed, position in the stream)."""
    _, _, frames, channels = batch.latents.shape
    own = keys(batch, cfg)
    times = [cfg.timesteps.draw(generator(seed, key, "timestep")) for key in own]
    dropped = {
        part: draw_uniform(seed, own, f"drop-{part}") < probability
        for part, probability in sorted(cfg.dropout.items())
    }
    return Draw(
        t=torch.stack(times),
        noise=draw_noise(seed, own, frames, channels),
        dropped=dropped,
        span=_spans(batch, cfg.inpaint, own, seed),
    )


def _spans(
    batch: Batch, inpaint: InpaintConfig | None, own: Sequence[int | str], seed: int
) -> Bool[Tensor, "example frame"]:
    """One contiguous span an example, of a uniformly drawn share of its frames, at a uniform place."""
    length = batch.latents.shape[2]
    if inpaint is None:
        return torch.ones(len(own), length, dtype=torch.bool)
    share = draw_uniform(seed, own, "span-length")
    place = draw_uniform(seed, own, "span-place")
    frames = batch.frames.amax(1)
    fraction = inpaint.min_fraction + (inpaint.max_fraction - inpaint.min_fraction) * share
    width = (fraction * frames).round().clamp(min=1)
    start = (place * (frames - width + 1)).floor()
    index = torch.arange(length)[None]
    return (index >= start[:, None]) & (index < (start + width)[:, None])


def outputs(
    model: SongModel,
    policy: Any,
    reference: Reference | None,
    batch: Batch,
    objective: Objective,
    random: Draw,
    *,
    old: Reference | None = None,
    known: Float[Tensor, "example member"] | None = None,
) -> Outputs:
    """Run exactly the forward passes the objective asks for and measure their errors.

    The members of all examples are stacked, winners first, into one forward a network. Everything is on the
    device of `batch.latents`. `known` are the reference's errors of these examples under this draw, if they were
    measured before: its forward pass is left out. An old policy that is the reference is run once.
    """
    _, members, length, _ = batch.latents.shape
    song, frames = _stack(batch.latents), _stack(batch.frames)
    noise, t = random.noise.repeat(members, 1, 1), random.t.repeat(members)
    x, target = flow.interpolate(song, noise, t), flow.velocity(song, noise)
    condition, painted = _condition(model, batch, random)
    condition = repeat(condition, members)
    mask = flow.mask_from_frames(frames, length) & painted.repeat(members, 1)

    predicted = {"policy": model.velocity(policy, x, t, condition, frames)}
    for name, beside in (("reference", reference), ("old", old)):
        if name not in objective.needs or (name == "reference" and known is not None):
            continue
        assert beside is not None, f"the trainer built no {name} policy for an objective that needs one"
        if name == "old" and beside is reference:
            predicted[name] = predicted["reference"]
            continue
        asked = _without_axes(model, batch, random, condition) if name == "reference" else condition
        with torch.no_grad(), beside.of(policy) as network:
            predicted[name] = model.velocity(network, x, t, asked, frames)

    def unstack(values: Tensor) -> Tensor:
        return rearrange(values, "(member example) ... -> example member ...", member=members)

    per_frame = {name: flow.frame_errors(v, target) for name, v in predicted.items()}
    errors: dict[str, Any] = {name: unstack(flow.masked_mean(e, mask)) for name, e in per_frame.items()}
    if known is not None:
        errors["reference"] = known
    wants_velocities, wants_frames = "velocities" in objective.needs, "frame_errors" in objective.needs
    return Outputs(
        **errors,
        t=random.t,
        mask=unstack(mask),
        soft_label=batch.soft_label,
        score=batch.score,
        span=batch.span,
        velocities=Velocities(target=unstack(target), **{n: unstack(v) for n, v in predicted.items()})
        if wants_velocities
        else None,
        frame_errors=FrameErrors(**{n: unstack(e) for n, e in per_frame.items()}) if wants_frames else None,
    )


def _without_axes(model: SongModel, batch: Batch, random: Draw, condition: Condition) -> Condition:
    """What the reference is asked for: the same song, without the axis it should be good on, which it never met."""
    if not any(prompt.axis for prompt in batch.prompts):
        return condition
    plain = replace(batch, prompts=tuple(replace(prompt, axis="") for prompt in batch.prompts))
    return repeat(_condition(model, plain, random)[0], batch.latents.shape[1])


def _stack(values: Tensor) -> Tensor:
    return rearrange(values, "example member ... -> (member example) ...")


def _condition(
    model: SongModel, batch: Batch, random: Draw
) -> tuple[Condition, Bool[Tensor, "example frame"]]:
    """The condition after dropout, and the frames on which the error counts.

    Where the audio context is dropped there is nothing to continue, so the error counts everywhere.
    """
    device = batch.latents.device
    condition = model.condition(batch.prompts, batch.latents.shape[2])
    condition = {name: tensor.to(device) for name, tensor in condition.items()}
    painted = random.span
    if not bool(painted.all()):
        song = batch.latents[:, 0]
        inside = flow.mask_from_frames(batch.frames[:, 0], song.shape[1])
        context = inside & ~painted
        condition["audio"] = song.where(context[..., None], 0).to(condition["audio"].dtype)
    for part, where in random.dropped.items():
        condition = drop(condition, part, where)
    if "audio" in random.dropped:
        painted = painted | random.dropped["audio"][:, None]
    return condition, painted
