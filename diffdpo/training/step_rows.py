"""The rows of a training step: which songs go through a network together, without padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from diffdpo import flow
from diffdpo.models.base import Condition, Inpaints, SongModel, move, require, take
from diffdpo.training.step_noise import CONTEXT, StepNoise
from diffdpo.types import Batch, Row

Place = tuple[int, int]
"""The example and the member of a row."""


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """Rows that go through a network in one call, at their noise levels."""

    x: Float[Tensor, "row frame channel"]
    t: Float[Tensor, " row"]
    target: Float[Tensor, "row frame channel"]
    mask: Bool[Tensor, "row frame"]
    """The frames on which the error counts."""
    frames: Int[Tensor, " row"]
    """Valid frames; on the host, where networks read them."""
    condition: Condition
    reference_condition: Condition
    """The condition for the reference, which may not know all that the policy is told."""
    contrast: Mapping[str, Condition] = field(default_factory=dict)
    """The conditions `plus` and `minus` of a slider."""
    scale: Float[Tensor, " row"] | None = None
    """The strength of the policy's adapter in each row; None: 1 in all."""
    places: tuple[int, ...] = ()
    """Place of each row among the members of all examples of the batch, winners first."""

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
            places=tuple(self.places[i] for i in index.tolist()),
        )


def stack_rows(model: SongModel, batch: Batch, noise: StepNoise) -> StepRows:
    """All rows of a batch in one call, padded to the longest; on the device of `batch.latents`."""
    examples, members, length, _ = batch.latents.shape
    return gather_rows(model, batch, noise, range(examples * members), length)


def cut_rows(model: SongModel, batch: Batch, noise: StepNoise, *, is_single: bool = False) -> list[StepRows]:
    """The rows of a batch in calls without padding: songs of one length share a call, or none with `is_single`.

    A network of a fixed window pads every song to it, so that all songs share a call. So do the examples of a
    slider, whose strengths hold from the forward pass to the end of the backward pass.
    """
    examples, members, longest, _ = batch.latents.shape
    lengths = [int(n) for column in batch.frames.T.tolist() for n in column]
    if is_single:
        groups = [[place] for place in range(examples * members)]
    elif model.spec.window == "fixed" or batch.scale is not None:
        groups = [list(range(examples * members))]
    else:
        groups = equal_groups(lengths)
    return [
        gather_rows(model, batch, noise, group, min(longest, max(lengths[place] for place in group)))
        for group in groups
    ]


def equal_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of equal values, groups in the order of their first members."""
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        groups.setdefault(length, []).append(place)
    return list(groups.values())


def gather_rows(
    model: SongModel, batch: Batch, noise: StepNoise, group: Sequence[int], length: int
) -> StepRows:
    """One call with the rows at some places among the members of all examples, winners first, cut to `length`."""
    examples = len(batch.latents)
    places = [(place % examples, place // examples) for place in group]
    example, member = torch.tensor(places).T
    song, frames = batch.latents[example, member, :length], batch.frames.cpu()[example, member]
    own_noise = noise.select(example, length)
    condition, span = encode_rows(model, batch.rows, batch, own_noise, places)
    reference_condition = condition
    if batch.reference_rows is not None:
        reference_condition, _ = encode_rows(model, batch.reference_rows, batch, own_noise, places)
    contrast_rows = {"plus": batch.plus_rows, "minus": batch.minus_rows}
    return StepRows(
        x=flow.interpolate(song, own_noise.noise, own_noise.t),
        t=own_noise.t,
        target=flow.velocity(song, own_noise.noise),
        mask=flow.mask_from_frames(frames.to(song.device), length) & span.to(song.device),
        frames=frames,
        condition=condition,
        reference_condition=reference_condition,
        contrast={
            name: encode_rows(model, own_rows, batch, own_noise, places)[0]
            for name, own_rows in contrast_rows.items()
            if own_rows is not None
        },
        scale=None if batch.scale is None else batch.scale[example],
        places=tuple(group),
    )


def encode_rows(
    model: SongModel, rows: Sequence[Sequence[Row]], batch: Batch, noise: StepNoise, places: Sequence[Place]
) -> tuple[Condition, Bool[Tensor, "row frame"]]:
    """The condition of the rows at `places`, after dropout; and the frames on which the error counts.

    `noise` is that of the rows. In-painting shows an example's first member outside the span. Where that context is
    dropped there is nothing to continue, so the error counts everywhere.
    """
    device, span = batch.latents.device, noise.span
    length = span.shape[1]
    condition = move(model.condition([rows[e][m] for e, m in places], length), device)
    if not bool(span.all()):
        require(model, Inpaints)
        inpaints: Any = model
        if CONTEXT in noise.drop_masks:
            span = span | noise.drop_masks[CONTEXT].to(span.device)[:, None]
        example = torch.tensor([e for e, _ in places])
        keep_mask = flow.mask_from_frames(batch.frames[example, 0].to(span.device), length) & ~span
        condition = inpaints.with_context(condition, batch.latents[example, 0, :length], keep_mask.to(device))
    for part, drop_mask in noise.drop_masks.items():
        if part != CONTEXT:
            condition = model.without(condition, part, drop_mask)
    return condition, span


def join_rows(
    values: Sequence[Shaped[Tensor, "_ _ *rest"]], parts: Sequence[StepRows], length: int
) -> Shaped[Tensor, "row {length} *rest"]:
    """What calls gave for their rows, in the order of the rows' places, with zeros up to `length` frames."""
    padded = [F.pad(value, (0, 0) * (value.ndim - 2) + (0, length - value.shape[1])) for value in values]
    places = [place for part in parts for place in part.places]
    joined = padded[0] if len(padded) == 1 else torch.cat(padded)
    if places == sorted(places):
        return joined
    order = sorted(range(len(places)), key=places.__getitem__)
    return joined[torch.tensor(order)]
