"""Flow-DPO with the winner's flow-matching error as an anchor (CRPO: Hung et al. 2024, TangoFlux, eq. 6)."""

from dataclasses import dataclass
from typing import ClassVar

from diffdpo.losses.dpo import DPO
from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class AnchoredDPO:
    """DPO + anchor * winner's error.

    DPO alone is content when the loser's error rises faster than the winner's. The anchor makes a rising
    winner error cost something by itself.
    """

    batch_kind: ClassVar[BatchKind] = "pair"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})

    beta: float = 2000.0
    label_smoothing: float = 0.0
    anchor: float = 1.0
    """Weight of the winner's error; 1 in TangoFlux, 0.1 to 0.2 elsewhere, 0 is plain DPO."""

    def __post_init__(self) -> None:
        DPO(self.beta, self.label_smoothing)  # checks both
        if self.anchor < 0:
            raise ValueError(f"anchor must not be negative, got {self.anchor}")

    def __call__(self, outputs: Outputs) -> LossOutput:
        preference = DPO(self.beta, self.label_smoothing)(outputs)
        return LossOutput(
            loss=preference.loss + self.anchor * outputs.policy[:, 0], metrics=preference.metrics
        )
