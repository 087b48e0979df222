"""Linear-DPO: a pull that never saturates (2026, arXiv 2605.21123)."""

from dataclasses import dataclass, field
from typing import ClassVar

from diffdpo.checks import check_range
from diffdpo.objectives.composition import pair_errors, term_needs, term_takes
from diffdpo.objectives.metrics import pair_metrics
from diffdpo.objectives.terms.margin import SoftLabel, implicit_rewards
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.objectives.terms.weights import Span, TimestepWeight
from diffdpo.types import BatchKind, LossOutput, Outputs, PerExample


@dataclass(frozen=True)
class LinearDPO:
    """omega (winner's error - loser's), omega = clamp(½ - 0.2 beta (r_w - r_l), floor, 1 - floor), detached.

    r is a song's implicit reward in units of beta/2, the reference's error less the policy's. Where DPO's gradient
    dies with sigmoid(-z), this one keeps at least `floor`, so it takes learning rates like those of supervised
    training. Nothing but its anchors and safeguard bounds the loser's error: use it with a reference that follows
    (reference: ema) and stop early. omega stands for the slope of a link, so there is none to choose.
    """

    batch_kind: ClassVar[BatchKind] = "pair"

    beta: float = 100.0
    floor: float = 0.01
    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    span: Span | None = None
    soft_label: SoftLabel = field(default_factory=SoftLabel)
    safeguard: Safeguard | None = None
    anchor: Anchor = field(default_factory=Anchor)
    """Its rewards are in units of beta/2, as are the errors of this loss."""
    needs = property(lambda self: term_needs(self, "reference"))
    takes = property(term_takes)

    def __post_init__(self) -> None:
        check_range(self, "beta", above=0)
        check_range(self, "floor", low=0, below=0.5)

    def __call__(self, outputs: Outputs) -> LossOutput:
        span_outputs, scale = pair_errors(outputs, self.span, self.safeguard)
        weight, certainty = self.timestep(outputs), self.soft_label.certainty(outputs)
        rewards = weight * implicit_rewards(span_outputs)
        error = (certainty * weight * span_outputs.policy).unbind(1)
        reward = (certainty * rewards.detach()).unbind(1)

        def pull(better: int, worse: int) -> PerExample:
            return self.omega(reward[better] - reward[worse]) * (error[better] - error[worse])

        difference = (rewards[:, 0] - rewards[:, 1]).detach()
        metrics = {
            **pair_metrics(outputs, self.beta / 2 * difference),
            "weight": self.omega(difference),
            **scale,
        }
        loss = self.soft_label(pull, outputs)
        return self.anchor(LossOutput(loss=loss, metrics=metrics), outputs, rewards[:, 0])

    def omega(self, difference: PerExample) -> PerExample:
        """The gradient factor of a difference of implicit rewards in units of beta/2."""
        return (0.5 - 0.2 * self.beta * difference).clamp(self.floor, 1 - self.floor)
