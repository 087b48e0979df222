"""MaPO: preferences without a reference (Hong et al. 2024, eq. 9)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffdpo.types import BatchKind, LossOutput, Need, Outputs


@dataclass(frozen=True)
class MaPO:
    """Winner's error - beta log sigmoid(sharpness (r(winner's error) - r(loser's))), r(e) = s e / (exp(s e) - 1).

    No reference forward, so a third cheaper than DPO and without its restraint: a first run, not a last one.
    """

    batch_kind: ClassVar[BatchKind] = "pair"
    needs: ClassVar[frozenset[Need]] = frozenset()

    beta: float = 0.1
    snr: float = 0.5
    """s above: the signal-to-noise ratio the original assumes."""
    sharpness: float = 1000.0
    """The number of diffusion steps in the original."""

    def __post_init__(self) -> None:
        for name in ("beta", "snr", "sharpness"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def __call__(self, outputs: Outputs) -> LossOutput:
        winner, loser = outputs.policy.unbind(1)
        margin = self.sharpness * (self._likelihood(winner) - self._likelihood(loser))
        metrics = {
            "margin": margin.detach(),
            "accuracy": (margin > 0).to(margin.dtype),
            "winner_error": winner.detach(),
            "loser_error": loser.detach(),
        }
        return LossOutput(loss=winner - self.beta * F.logsigmoid(margin), metrics=metrics)

    def _likelihood(self, error: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        return self.snr * error / (torch.exp(self.snr * error) - 1)
