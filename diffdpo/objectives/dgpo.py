"""DGPO: DPO between the good and the bad of a group (Luo et al. 2025, arXiv 2510.08425, eq. 14)."""

from dataclasses import dataclass
from typing import ClassVar

from diffdpo.objectives.terms.margin import gains, present
from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class DGPO:
    """A song's error times its advantage A, times sigmoid(beta mean_k A_k (error_k - reference error_k)), detached.

    The sigmoid is DPO's gradient factor for the whole group: one half at the start, and nearing zero where the
    group is already ordered. A group is an example, so nothing is summed over the batch.
    """

    batch_kind: ClassVar[BatchKind] = "group"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})

    beta: float = 100.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")

    def __call__(self, outputs: Outputs) -> LossOutput:
        score = present(outputs.score)
        logit = self.beta * (-score * gains(outputs).detach()).mean(1)
        factor = logit.sigmoid()
        metrics = {"error": outputs.policy.detach().mean(1), "margin": -logit, "gradient_factor": factor}
        return LossOutput(loss=factor * (score * outputs.policy).mean(1), metrics=metrics)
