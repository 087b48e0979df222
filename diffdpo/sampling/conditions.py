"""The conditions of a batch of samples, with a row for every condition that differs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from diffdpo.errors import DataError
from diffdpo.models.base import (
    Condition,
    Inpaints,
    LatentSpec,
    Prepares,
    SongModel,
    move,
    require,
    supports,
    take,
)
from diffdpo.sampling.guidance import Guidance
from diffdpo.sampling.request import InpaintContext, Request
from diffdpo.types import Row


@dataclass(frozen=True, kw_only=True)
class ConditionBatch:
    """The conditions of a batch of samples. Samples with equal conditions share a row, which is encoded once."""

    condition: Condition
    frames: Int[Tensor, " row"]
    """Valid frames of each row, on the CPU."""
    cond: Int[Tensor, " sample"]
    """The row of each sample."""
    uncond: Int[Tensor, " sample"]
    """The row of each sample's negative prompt or null; unused without guidance."""
    axes: Mapping[str, Int[Tensor, " sample"]] = field(default_factory=dict)
    """The row of each sample's prompt with a preference axis in it, by axis."""

    @property
    def length(self) -> int:
        """Frames of the longest row."""
        return int(self.frames.max())


@dataclass(frozen=True, eq=False)
class ConditionEntry:
    """The row and in-painting context of one branch of guidance of one sample."""

    row: Row
    context: InpaintContext | None
    is_null: bool = False
    """Whether the model's unconditional parts are dropped."""


def check_request(model: SongModel, request: Request) -> None:
    """DataError for a request that the model cannot serve, or whose parts do not fit together."""
    spec, frames = model.spec, request.row.frames
    if frames > spec.max_frames:
        seconds, longest = frames / spec.frames_per_second, spec.max_frames / spec.frames_per_second
        raise DataError(
            f"sample {request.sample_id!r}: {seconds:.2f} s is longer than this model's {longest:.2f} s; "
            "ask for less"
        )
    for name, latents in (("context", request.context), ("init", request.init)):
        if latents is not None and latents.latents.shape != (frames, spec.channels):
            shape = tuple(latents.latents.shape)
            raise DataError(
                f"sample {request.sample_id!r}: its {name} is {shape} [frame, channel], the song will be "
                f"{(frames, spec.channels)}; cut or pad it to the prompt's duration_s"
            )
    shape = (request.row.total_frames, spec.channels)
    if request.noise is not None and request.noise.shape != shape:
        raise DataError(
            f"sample {request.sample_id!r}: its noise is {tuple(request.noise.shape)} [frame, channel], its whole "
            f"song is {shape}; make it anew for this duration_s"
        )


def encode_conditions(
    model: SongModel,
    requests: Sequence[Request],
    guidance: Guidance,
    device: torch.device,
    axes: Sequence[str] = (),
) -> ConditionBatch:
    """The conditions of a batch on a device: those of both branches where there is guidance, and those with each of
    some preference axes in the prompt."""
    count = len(requests)
    entries = [ConditionEntry(request.row, request.context) for request in requests]
    if guidance.active:
        entries += [_negative(request, model.spec) for request in requests]
    for axis in axes:
        entries += [ConditionEntry(_axis_row(request, axis), request.context) for request in requests]
    if not model.unconditional and any(entry.is_null for entry in entries):
        raise DataError(
            "this model has no unconditional branch (a distilled network?); set sampling.guidance_scale=1, or "
            "give every prompt a negative_text"
        )
    length = max(entry.row.frames for entry in entries)
    condition = model.condition([entry.row for entry in entries], length)
    condition = _with_contexts(model, condition, [entry.context for entry in entries], length)
    for part in model.unconditional:
        condition = model.without(condition, part, torch.tensor([entry.is_null for entry in entries]))
    frames = torch.tensor([entry.row.frames for entry in entries])
    first, place = distinct_rows({**condition, "frames": frames})
    groups = place.split(count)
    return ConditionBatch(
        condition=move(take(condition, first), device),
        frames=frames[first],
        cond=groups[0],
        uncond=groups[1 if guidance.active else 0],
        axes=dict(zip(axes, groups[len(groups) - len(axes) :], strict=True)),
    )


def _axis_row(request: Request, axis: str) -> Row:
    """The row of a prompt with a preference axis in it."""
    if axis not in request.axis_rows:
        raise DataError(
            f"sample {request.sample_id!r}: its prompt was not embedded with the axis {axis!r} of sampling.knobs; "
            "give the request its axis_rows"
        )
    return request.axis_rows[axis]


def _negative(request: Request, spec: LatentSpec) -> ConditionEntry:
    """The unconditional branch: of the negative prompt, or of the null."""
    context = request.context if request.clamp_context or spec.unconditional_context else None
    if request.negative is not None:
        return ConditionEntry(request.negative, context)
    return ConditionEntry(request.row, context, is_null=True)


def distinct_rows(
    tree: dict[str, Tensor],
) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " row"]]:
    """The first row of each content, in order, and for every row its place among these."""
    count = len(next(iter(tree.values())))
    places: dict[bytes, int] = {}
    first: list[int] = []
    place: list[int] = []
    for row in range(count):
        digest = hashlib.blake2b()
        for name in sorted(tree):
            digest.update(tree[name][row].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        key = digest.digest()
        if key not in places:
            places[key] = len(first)
            first.append(row)
        place.append(places[key])
    return torch.tensor(first), torch.tensor(place)


def _with_contexts(
    model: SongModel, condition: Condition, contexts: Sequence[InpaintContext | None], length: int
) -> Condition:
    """The condition with the in-painting context of each song."""
    if not any(contexts):
        return condition
    require(model, Inpaints)
    latents = torch.zeros(len(contexts), length, model.spec.channels)
    keep_mask = torch.zeros(len(contexts), length, dtype=torch.bool)
    for row, context in enumerate(contexts):
        if context is not None:
            latents[row, : len(context.latents)] = context.latents
            keep_mask[row, : len(context.keep_mask)] = context.keep_mask
    return model.with_context(condition, latents, keep_mask)  # type: ignore[attr-defined]


def prepare_conditions(model: SongModel, conditions: ConditionBatch, network: Any = None) -> ConditionBatch:
    """Conditions after the model's `prepare`, if it has one: what does not depend on x and t is computed once.

    `network` is the bare network, by default the model's own.
    """
    if not supports(model, Prepares):
        return conditions
    bare_network = model.network if network is None else network
    condition = model.prepare(bare_network, conditions.condition, conditions.frames)  # type: ignore[attr-defined]
    return replace(conditions, condition=condition)
