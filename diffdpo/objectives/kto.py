"""Unpaired feedback, thumbs up or down: Diffusion-KTO (Li et al. 2024, eq. 7) and BCO (Jung et al. 2024, eq. 9)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from diffdpo.checks import check_range
from diffdpo.errors import ensure
from diffdpo.objectives.composition import term_needs, term_takes
from diffdpo.objectives.terms.margin import implicit_rewards
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import BatchKind, LossOutput, ObjectiveState, Outputs, PerExample, expect

UTILITIES: dict[str, Callable[[PerExample], PerExample]] = {
    "sigmoid": torch.sigmoid,
    "loss_averse": F.logsigmoid,
    "risk_seeking": lambda u: -F.logsigmoid(-u),
}
"""Utility of a reward u: saturating both ways; steep below 0, which is BCO; steep above 0."""
REFERENCE_POINT = "reference_point"


@dataclass(frozen=True)
class KTO:
    """1 - utility(label beta (r - z0)): a liked song should gain more than average, a disliked one less.

    r is the implicit reward, the reference's error less the policy's times the timestep's weight, and z0 its mean,
    not below zero. Here z0 is that of the step before, over all processes: a mean of the same batch would make
    every song's loss depend on how the batch is split. So at the first step it is zero. Labels are `score`:
    positive is liked. Class balance matters, since z0 is a mean over the songs there are. The utility is KTO's
    link; soft labels and spans belong to pairs.
    """

    batch_kind: ClassVar[BatchKind] = "rated"

    beta: float = 1000.0
    """Factor of the reward, without DPO's half: 1000 here is 2000 in DPO."""
    utility: Literal["sigmoid", "loss_averse", "risk_seeking"] = "sigmoid"
    liked_weight: float = 1.0
    disliked_weight: float = 1.0
    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    needs = property(lambda self: term_needs(self, "reference"))
    takes = property(term_takes)

    def __post_init__(self) -> None:
        check_range(self, "beta", above=0)
        ensure(
            self.utility in UTILITIES,
            f"utility must be one of {', '.join(UTILITIES)}, got {self.utility!r}",
        )
        check_range(self, "liked_weight", "disliked_weight", low=0)

    def __call__(self, outputs: Outputs) -> LossOutput:
        is_liked = expect(outputs.score)[:, 0] > 0
        gain = (self.timestep(outputs) * implicit_rewards(outputs))[:, 0]
        point = outputs.state.get(REFERENCE_POINT, 0.0)
        reward = self.beta * (gain - point)
        utility = UTILITIES[self.utility](torch.where(is_liked, reward, -reward))
        weight = torch.where(is_liked, self.liked_weight, self.disliked_weight).to(utility.dtype)
        metrics = {
            "gain": gain.detach(),
            "accuracy": ((reward > 0) == is_liked).to(reward.dtype),
            "error": outputs.policy[:, 0].detach(),
        }
        return LossOutput(loss=weight * (1 - utility), metrics=metrics)

    def update(self, state: ObjectiveState, means: ObjectiveState) -> ObjectiveState:
        """The reference point of the next step, from the means over this one."""
        return {REFERENCE_POINT: max(0.0, means["gain"])}
