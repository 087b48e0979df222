"""DGPO: DPO between the good and the bad of a group (Luo et al. 2025, arXiv 2510.08425, eq. 14)."""

from dataclasses import dataclass, field
from typing import ClassVar

from diffdpo.checks import check_range
from diffdpo.objectives.composition import term_needs, term_takes
from diffdpo.objectives.terms.margin import AutoBeta, implicit_rewards
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import BatchKind, LossOutput, Outputs, expect


@dataclass(frozen=True)
class DGPO:
    """A song's error times its advantage A, times sigmoid(beta mean_k A_k (error_k - reference error_k)), detached.

    The sigmoid is DPO's gradient factor for the whole group: one half at the start, and nearing zero where the
    group is already ordered; an automatic beta sets its size as it does DPO's. A group is an example, so nothing is
    summed over the batch. Soft labels and spans belong to pairs.
    """

    batch_kind: ClassVar[BatchKind] = "group"

    beta: float = 100.0
    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    auto_beta: AutoBeta = field(default_factory=AutoBeta)
    needs = property(lambda self: term_needs(self, "reference"))
    takes = property(term_takes)
    update = property(lambda self: self.auto_beta.update)

    def __post_init__(self) -> None:
        check_range(self, "beta", above=0)

    def __call__(self, outputs: Outputs) -> LossOutput:
        score, weight = expect(outputs.score), self.timestep(outputs)
        beta = self.auto_beta(self.beta, outputs.state)
        change = (-score * (weight * implicit_rewards(outputs)).detach()).mean(1)
        logit = beta * change
        factor = logit.sigmoid()
        loss = factor * (score * (weight * outputs.policy)).mean(1)
        metrics = {"error": outputs.policy.detach().mean(1), "margin": -logit, "gradient_factor": factor}
        return LossOutput(loss=loss, metrics={**metrics, **self.auto_beta.metrics(2 * change, beta)})
