"""Unpaired feedback, thumbs up or down: Diffusion-KTO (Li et al. 2024, eq. 7) and BCO (Jung et al. 2024, eq. 9)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffdpo.objectives.terms.margin import gains, present
from diffdpo.types import BatchKind, LossOutput, Need, Outputs

Utility = Callable[[Float[Tensor, " song"]], Float[Tensor, " song"]]
UTILITIES: dict[str, Utility] = {
    "sigmoid": torch.sigmoid,
    "loss_averse": F.logsigmoid,
    "risk_seeking": lambda u: -F.logsigmoid(-u),
}
"""What being better (u > 0) is worth: saturating both ways; felt downwards (that is BCO); felt upwards."""
REFERENCE_POINT = "reference_point"


@dataclass(frozen=True)
class KTO:
    """1 - utility(label beta (gain - z0)): a liked song should gain more than average, a disliked one less.

    z0 is the mean gain, not below zero. Here it is that of the step before, over all processes: a mean of the
    same batch would make every song's loss depend on how the batch is split. So at the first step it is zero.
    Labels are `score`: positive is liked. Class balance matters, since z0 is a mean over what is there.
    """

    batch_kind: ClassVar[BatchKind] = "rated"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})

    beta: float = 1000.0
    """Without the half: 2000 in DPO's convention."""
    utility: Literal["sigmoid", "loss_averse", "risk_seeking"] = "sigmoid"
    liked_weight: float = 1.0
    disliked_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if self.utility not in UTILITIES:
            raise ValueError(f"utility must be one of {', '.join(UTILITIES)}, got {self.utility!r}")
        if min(self.liked_weight, self.disliked_weight) < 0:
            raise ValueError("liked_weight and disliked_weight must not be negative")

    def __call__(self, outputs: Outputs) -> LossOutput:
        liked = present(outputs.score)[:, 0] > 0
        gain = gains(outputs)[:, 0]
        point = outputs.running.get(REFERENCE_POINT, 0.0)
        reward = self.beta * (gain - point)
        utility = UTILITIES[self.utility](torch.where(liked, reward, -reward))
        weight = torch.where(liked, self.liked_weight, self.disliked_weight).to(utility.dtype)
        metrics = {
            "gain": gain.detach(),
            "accuracy": ((reward > 0) == liked).to(reward.dtype),
            "error": outputs.policy[:, 0].detach(),
        }
        return LossOutput(loss=weight * (1 - utility), metrics=metrics)

    def update(self, running: Mapping[str, float], means: Mapping[str, float]) -> Mapping[str, float]:
        """The reference point of the next step, from the means over this one."""
        return {REFERENCE_POINT: max(0.0, means["gain"])}
