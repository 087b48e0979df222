"""What all objectives on pairs share: the implicit rewards, how they are scaled, and what to watch."""

from collections.abc import Mapping
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.types import Outputs

Reduction = Literal["mean", "per_frame", "sum"]
T = TypeVar("T")
TimestepWeight = Literal["constant", "clipped_elbo", "theory"]


def present(value: T | None) -> T:
    """A field of Outputs or Velocities that the objective's `needs` and batch kind promise."""
    assert value is not None, "the objective did not declare that it needs this"
    return value


def gains(outputs: Outputs) -> Float[Tensor, "example member"]:
    """How far the policy's error lies below the reference's: positive is better than the reference."""
    return present(outputs.reference) - outputs.policy


def elements(outputs: Outputs, reduction: Reduction) -> Float[Tensor, "example member"] | float:
    """By what a mean squared error is multiplied to be summed over frames, or over all latent elements.

    With sums a long song pulls harder than a short one and beta depends on the length; with means, the
    default, it does not (SimpleTuner and Voxtral sum, everybody else takes means).
    """
    if reduction == "mean":
        return 1.0
    frames = present(outputs.mask).sum(-1).to(outputs.policy.dtype)
    if reduction == "per_frame":
        return frames
    return frames * present(outputs.velocities).target.shape[-1]


def frame_weights(outputs: Outputs, segment: float) -> Float[Tensor, "example member frame"]:
    """How much each frame counts in a song's error; they sum to one over the frames that exist.

    1 - `segment` is spread over the whole song and `segment` over the stretch the preference is about, so a defect
    of three seconds in 285 is not diluted a hundred times (Local-DPO, 2026, and masked Flow-DPO on images are the
    precedents). A member without a frame in the stretch counts as a whole.
    """
    mask = present(outputs.mask)
    dtype = outputs.policy.dtype
    whole = mask.to(dtype) / mask.sum(-1, keepdim=True).clamp(min=1)
    if outputs.span is None:
        return whole
    inside = mask & outputs.span[:, None]
    count = inside.sum(-1, keepdim=True)
    stretch = torch.where(count > 0, inside.to(dtype) / count.clamp(min=1), whole)
    return (1 - segment) * whole + segment * stretch


def weighted(
    errors: Float[Tensor, "example member frame"], weights: Float[Tensor, "example member frame"]
) -> Float[Tensor, "example member"]:
    """The mean of frames' errors under weights. What stands in the padding cannot matter, not even a NaN."""
    return (errors.where(weights > 0, 0) * weights.to(errors.dtype)).sum(-1)


def timestep_weight(
    kind: TimestepWeight, clip: float, t: Float[Tensor, " example"] | None
) -> Float[Tensor, "example 1"] | float:
    """How much a margin at time t counts.

    constant       1, which VideoAlign found to work best in flow models (Liu et al. 2025, sec. 4).
    clipped_elbo   (1 - t)/t up to `clip`: what the likelihood bound of a rectified flow gives (Kingma & Gao
                   2023), kept finite at the song's end.
    theory         (1 - t)², which follows from Diffusion-DPO's derivation and invites reward hacking at high
                   noise, where it hardly restrains the policy.
    """
    if kind == "constant":
        return 1.0
    t = present(t)
    weight = (1 - t) ** 2 if kind == "theory" else ((1 - t) / t).clamp(max=clip)
    return weight[:, None]


def pair_metrics(outputs: Outputs, margin: Float[Tensor, " pair"]) -> Mapping[str, Float[Tensor, " pair"]]:
    """What to watch: accuracy alone hides that both errors can rise, the loser's only faster."""
    winner, loser = gains(outputs).detach().unbind(1)
    margin = margin.detach()
    factor = (-margin).sigmoid()
    return {
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
        "winner_gain": winner,
        "loser_gain": loser,
        "winner_error": outputs.policy[:, 0].detach(),
        "loser_error": outputs.policy[:, 1].detach(),
        "gradient_factor": factor,
        "saturated": (factor < 0.05).to(margin.dtype),
    }


def masked_square(
    difference: Float[Tensor, "example member frame channel"], outputs: Outputs
) -> Float[Tensor, "example member"]:
    """Mean square over the frames that count and all channels, in at least fp32."""
    wide = difference.to(torch.promote_types(difference.dtype, torch.float32))
    return masked_mean(wide**2, outputs)


def masked_mean(
    values: Float[Tensor, "example member frame channel"], outputs: Outputs
) -> Float[Tensor, "example member"]:
    """Mean over the frames that count and all channels."""
    per_frame = values.mean(-1)
    if outputs.mask is None:
        return per_frame.mean(-1)
    return per_frame.where(outputs.mask, 0).sum(-1) / outputs.mask.sum(-1).clamp(min=1)
