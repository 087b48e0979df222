"""Reward-weighted regression (Peters & Schaal 2007; for flows: Liu et al. 2025, VideoAlign, eq. 10)."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from diffdpo.checks import check_range
from diffdpo.objectives.composition import term_needs, term_takes
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import BatchKind, LossOutput, Outputs, expect


@dataclass(frozen=True)
class RWR:
    """exp(score / temperature) times a song's flow-matching error, the weight clipped at `max_weight`.

    `score` is the song's advantage over its prompt's others (diffdpo centres it), so exp has mean about one. A
    small temperature leaves only the best: expert iteration in the limit.
    """

    batch_kind: ClassVar[BatchKind] = "group"

    temperature: float = 1.0
    max_weight: float = 20.0
    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    needs = property(term_needs)
    takes = property(term_takes)

    def __post_init__(self) -> None:
        check_range(self, "temperature", above=0)
        check_range(self, "max_weight", above=0, high=math.inf)

    def __call__(self, outputs: Outputs) -> LossOutput:
        weight = torch.exp(expect(outputs.score) / self.temperature).clamp(max=self.max_weight)
        metrics = {"error": outputs.policy.detach().mean(1), "weight": weight.mean(1)}
        return LossOutput(loss=(weight * (self.timestep(outputs) * outputs.policy)).mean(1), metrics=metrics)
