"""Weights: how much a time of the flow, and a frame of the song, count in a song's error."""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.errors import ensure
from diffdpo.types import Need, Outputs, expect


@dataclass(frozen=True)
class TimestepWeight:
    """The factor w(t) of every squared error at time t, the policy's and the reference's."""

    weight: Literal["constant", "clipped_elbo", "theory"] = "constant"
    """constant: 1, which VideoAlign found to work best in flow models (Liu et al. 2025, sec. 4). clipped_elbo:
    (1 - t)/t up to `clip`, the weight in a rectified flow's likelihood bound (Kingma & Gao 2023). theory: (1 - t)²,
    which follows from Diffusion-DPO's derivation and hardly restrains the policy at high noise."""
    clip: float = 5.0
    """The largest weight of clipped_elbo, reached near the song."""

    def __post_init__(self) -> None:
        check_range(self, "clip", above=0, prefix="timestep.")
        ensure(self.clip == 5.0 or self.weight == "clipped_elbo", "timestep.clip is for clipped_elbo only")
        if self.weight == "theory":
            warnings.warn("timestep.weight=theory: expect reward hacking (VideoAlign, table 4)", stacklevel=2)

    def __call__(self, outputs: Outputs) -> Float[Tensor, "example 1"] | float:
        if self.weight == "constant":
            return 1.0
        t = expect(outputs.t)[:, None]
        return (1 - t) ** 2 if self.weight == "theory" else ((1 - t) / t).clamp(max=self.clip)


@dataclass(frozen=True)
class Span:
    """The frames that a pair's preference is about: their mean error makes up `share` of a song's error.

    The rest is the mean over the whole song: a defect of three seconds in 285 is not diluted a hundred times
    (Local-DPO, 2026). A pair that names no span, and a song that ends before it, count as a whole.
    """

    share: float = 0.5
    """In [0, 1]; 0 trains on whole songs."""

    def __post_init__(self) -> None:
        check_range(self, "share", low=0, high=1, prefix="span.")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"frame_errors"} if self.share else ())

    def __call__(self, outputs: Outputs) -> Outputs:
        """The same outputs with errors in which the span counts for more."""
        if not self.share:
            return outputs
        errors, span = expect(outputs.frame_errors), None if outputs.span is None else outputs.span[:, None]
        weights = flow.span_weights(expect(outputs.mask), span, self.share, outputs.policy.dtype)
        reference = None if errors.reference is None else flow.weighted_frame_mean(errors.reference, weights)
        policy = flow.weighted_frame_mean(errors.policy, weights)
        return replace(outputs, policy=policy, reference=reference, frame_weights=weights)
