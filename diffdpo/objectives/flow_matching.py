"""Conditional flow matching (Lipman et al. 2022, eq. 9), the objective of supervised training."""

from dataclasses import dataclass, field
from typing import ClassVar

from diffdpo.objectives.composition import term_needs, term_takes
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import BatchKind, LossOutput, Outputs


@dataclass(frozen=True)
class FlowMatching:
    """The squared velocity error of a song, averaged over its valid frames and all channels."""

    batch_kind: ClassVar[BatchKind] = "song"

    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    needs = property(term_needs)
    takes = property(term_takes)

    def __call__(self, outputs: Outputs) -> LossOutput:
        return LossOutput(loss=(self.timestep(outputs) * outputs.policy)[:, 0])
