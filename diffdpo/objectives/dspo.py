"""DSPO: score matching of the preference-tilted model, on the winner alone (Zhu et al., ICLR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from diffdpo.objectives.terms.margin import gains, masked_square, pair_metrics, present
from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class DSPO:
    """‖(v - target) - beta (1 - sigmoid(z)) (v - v_reference)‖² of the winner, z the margin of DPO.

    The pull away from the reference is strongest where the pair is still ordered wrongly; the loser acts through
    the margin only, which is differentiated, as in the original.
    """

    batch_kind: ClassVar[BatchKind] = "pair"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "velocities"})

    beta: float = 0.01

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")

    def __call__(self, outputs: Outputs) -> LossOutput:
        velocities = present(outputs.velocities)
        winner, loser = gains(outputs).unbind(1)
        margin = self.beta / 2 * (winner - loser)
        pull = self.beta * (1 - margin.sigmoid())[:, None, None, None]
        tilted = (velocities.policy - velocities.target) - pull * (
            velocities.policy - present(velocities.reference)
        )
        return LossOutput(loss=masked_square(tilted, outputs)[:, 0], metrics=pair_metrics(outputs, margin))
