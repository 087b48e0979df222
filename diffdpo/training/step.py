"""From a batch to what the objective sees: the mathematics of one training step, free of plumbing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffdpo import flow
from diffdpo.models.base import SongModel
from diffdpo.training.references import AuxiliaryPolicy as AuxiliaryPolicy
from diffdpo.training.row_scale import scale_rows
from diffdpo.training.step_noise import CONTEXT as CONTEXT
from diffdpo.training.step_noise import StepNoise as StepNoise
from diffdpo.training.step_noise import noise_keys as noise_keys
from diffdpo.training.step_noise import sample_noise as sample_noise
from diffdpo.training.step_rows import StepRows as StepRows
from diffdpo.training.step_rows import cut_rows, join_rows
from diffdpo.training.step_rows import stack_rows as stack_rows
from diffdpo.types import Batch, FrameErrors, Objective, Outputs, Velocities


@dataclass(frozen=True, kw_only=True)
class Standards:
    """What a policy is measured against."""

    reference: AuxiliaryPolicy | None = None
    old: AuxiliaryPolicy | None = None
    cached: Float[Tensor, "example member"] | None = None
    """Errors of the reference that were measured before."""


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


def joint_velocity(
    model: SongModel, network: Any, parts: Sequence[StepRows], length: int, name: str = "policy"
) -> Float[Tensor, "row {length} channel"]:
    """The velocity of all rows, a part at a time, with zeros up to `length` frames."""
    return join_rows([row_velocity(model, network, part, name) for part in parts], parts, length)


def auxiliary_velocities(
    model: SongModel,
    policy: Any,
    reference: AuxiliaryPolicy | None,
    parts: Sequence[StepRows],
    objective: Objective,
    *,
    length: int,
    old: AuxiliaryPolicy | None = None,
    has_errors: bool = False,
) -> dict[str, Tensor]:
    """The velocities of the reference and the old policy, of which the objective needs some, without gradient.

    `length`: the frames of the batch. `has_errors`: the reference's errors are there already. An old
    policy that is the reference is run once.
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
            v[name] = joint_velocity(model, network, parts, length, name)
    return v


def measure_outputs(
    batch: Batch,
    noise: StepNoise,
    parts: Sequence[StepRows],
    v: Mapping[str, Tensor],
    objective: Objective,
    cached: Float[Tensor, "example member"] | None = None,
) -> Outputs:
    """What the objective sees of the velocities `v`, by policy; `cached` are the reference's errors."""
    members = batch.latents.shape[1]
    length = batch.latents.shape[2]
    target = join_rows([part.target for part in parts], parts, length)
    mask = join_rows([part.mask for part in parts], parts, length)

    def unstack(values: Tensor) -> Tensor:
        return rearrange(values, "(member example) ... -> example member ...", member=members)

    per_frame = {
        name: flow.frame_errors(prediction, target)
        for name, prediction in v.items()
        if name not in parts[0].contrast
    }
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
        scale=batch.scale,
        velocities=Velocities(target=unstack(target), **{n: unstack(p) for n, p in v.items()})
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

    Songs of one length share a forward pass of a network, so that none is padded. Everything is on the device of
    `batch.latents`. `cached` are the reference's errors of these examples under this noise, if they were measured
    before: its forward passes are left out.
    """
    standards = Standards(reference=reference, old=old, cached=cached)
    return part_outputs(model, policy, batch, objective, noise, cut_rows(model, batch, noise), standards)


def part_outputs(
    model: SongModel,
    policy: Any,
    batch: Batch,
    objective: Objective,
    noise: StepNoise,
    parts: Sequence[StepRows],
    standards: Standards,
) -> Outputs:
    """`outputs` with the rows of the batch in these parts.

    What has no gradient comes first, so that its memory is free again when the policy's activations are kept.
    """
    length = batch.latents.shape[2]
    v = auxiliary_velocities(
        model, policy, standards.reference, parts, objective,
        length=length, old=standards.old, has_errors=standards.cached is not None,
    )  # fmt: skip
    torch.clear_autocast_cache()  # weights that were cast without a gradient
    v["policy"] = joint_velocity(model, policy, parts, length)
    return measure_outputs(batch, noise, parts, v, objective, standards.cached)
