"""Linear-DPO: a pull that never saturates (2026, arXiv 2605.21123)."""

from dataclasses import dataclass
from typing import ClassVar

from diffdpo.objectives.terms.margin import gains, pair_metrics
from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class LinearDPO:
    """omega (winner's error - loser's), omega = clamp(½ - 0.2 beta (gain_w - gain_l), floor, 1 - floor), detached.

    Where DPO's gradient dies with sigmoid(-z), this one keeps at least `floor`, so it takes learning rates like
    those of supervised training. Nothing bounds the loser's error: use it with a reference that follows
    (reference: ema) and stop early.
    """

    batch_kind: ClassVar[BatchKind] = "pair"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})

    beta: float = 100.0
    floor: float = 0.01

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if not 0 <= self.floor < 0.5:
            raise ValueError(f"floor must be in [0, 0.5), got {self.floor}")

    def __call__(self, outputs: Outputs) -> LossOutput:
        winner, loser = gains(outputs).detach().unbind(1)
        weight = (0.5 - 0.2 * self.beta * (winner - loser)).clamp(self.floor, 1 - self.floor)
        loss = weight * (outputs.policy[:, 0] - outputs.policy[:, 1])
        metrics = pair_metrics(outputs, self.beta / 2 * (winner - loser))
        return LossOutput(loss=loss, metrics={**metrics, "weight": weight})
