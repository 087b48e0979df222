"""Reward-weighted regression (Peters & Schaal 2007; for flows: Liu et al. 2025, VideoAlign, eq. 10)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from diffdpo.objectives.terms.margin import present
from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class RewardWeighted:
    """exp(score / temperature) times a song's flow-matching error, the weight clipped at `max_weight`.

    `score` is the song's advantage over its prompt's others (diffdpo centres it), so exp has mean about one. A
    small temperature leaves only the best: expert iteration in the limit.
    """

    batch_kind: ClassVar[BatchKind] = "group"
    needs: ClassVar[frozenset[Need]] = frozenset()

    temperature: float = 1.0
    max_weight: float = 20.0

    def __post_init__(self) -> None:
        for name in ("temperature", "max_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def __call__(self, outputs: Outputs) -> LossOutput:
        weight = torch.exp(present(outputs.score) / self.temperature).clamp(max=self.max_weight)
        error = outputs.policy
        metrics = {"error": error.detach().mean(1), "weight": weight.mean(1)}
        return LossOutput(loss=(weight * error).mean(1), metrics=metrics)
