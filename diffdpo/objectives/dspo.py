"""DSPO: score matching of the preference-tilted model, on the winner alone (Zhu et al., ICLR 2025)."""

from dataclasses import dataclass, field
from typing import ClassVar

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.errors import ensure
from diffdpo.objectives.composition import pair_errors, term_needs, term_takes
from diffdpo.objectives.metrics import pair_metrics
from diffdpo.objectives.terms.margin import SoftLabel, implicit_rewards
from diffdpo.objectives.terms.weights import Span, TimestepWeight
from diffdpo.types import BatchKind, LossOutput, Outputs, PerExample, PerSong, expect


@dataclass(frozen=True)
class DSPO:
    """‖(v - target) - beta (1 - sigmoid(z)) (v - v_reference)‖² of the winner, z the margin of DPO.

    The pull away from the reference is strongest where the pair is still ordered wrongly; the loser acts through
    the margin only, which is differentiated, as in the original. So there is no push on the loser for a safeguard
    to scale, the winner's error is in the loss without an anchor, and the sigmoid, from which the pull is derived,
    is no link to be chosen. A soft label is a mixture only: the pull has no scale of its own for a certainty.
    """

    batch_kind: ClassVar[BatchKind] = "pair"

    beta: float = 0.01
    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    span: Span | None = None
    soft_label: SoftLabel = field(default_factory=SoftLabel)
    needs = property(lambda self: term_needs(self, "reference", "velocities"))
    takes = property(term_takes)

    def __post_init__(self) -> None:
        check_range(self, "beta", above=0)
        ensure(
            self.soft_label.kind != "certainty_margin", "soft_label.kind of dspo must be mixture or ignore"
        )

    def __call__(self, outputs: Outputs) -> LossOutput:
        span_outputs, _ = pair_errors(outputs, self.span, None)
        weight = self.timestep(outputs)
        winner, loser = (weight * implicit_rewards(span_outputs)).unbind(1)
        margin = self.beta / 2 * (winner - loser)

        def tilted_loss(better: int, worse: int) -> PerExample:
            return (weight * self._tilted_errors(span_outputs, margin if better < worse else -margin))[
                :, better
            ]

        return LossOutput(loss=self.soft_label(tilted_loss, outputs), metrics=pair_metrics(outputs, margin))

    def _tilted_errors(self, outputs: Outputs, margin: PerExample) -> PerSong:
        """Mean squared error of the velocities against the target that this margin tilts."""
        velocities = expect(outputs.velocities)
        pull = self.beta * (1 - margin.sigmoid())[:, None, None, None]
        drift = velocities.policy - expect(velocities.reference)
        error = (velocities.policy - velocities.target) - pull * drift
        return flow.masked_square(error, outputs.mask, outputs.frame_weights)
