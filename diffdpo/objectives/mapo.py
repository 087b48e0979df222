"""MaPO: preferences without a reference (Hong et al. 2024, eq. 9)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F

from diffdpo.checks import check_range
from diffdpo.errors import ensure
from diffdpo.objectives.composition import pair_errors, term_needs, term_takes
from diffdpo.objectives.terms.margin import SoftLabel
from diffdpo.objectives.terms.weights import Span
from diffdpo.types import BatchKind, LossOutput, Outputs, PerExample


@dataclass(frozen=True)
class MaPO:
    """Winner's error - beta log sigmoid(sharpness (r(winner's error) - r(loser's))), r(e) = s e / (exp(s e) - 1).

    No reference forward, so a third cheaper than DPO and without its restraint: a first run, not a last one. r is
    made for the errors of one signal-to-noise ratio, so it takes no weight of the timestep, and no rewards, so no
    links and no certainty of a label; the winner's error anchors it already.
    """

    batch_kind: ClassVar[BatchKind] = "pair"

    beta: float = 0.1
    snr: float = 0.5
    """s above: the signal-to-noise ratio the original assumes."""
    sharpness: float = 1000.0
    """The number of diffusion steps in the original."""
    span: Span | None = None
    soft_label: SoftLabel = field(default_factory=SoftLabel)
    needs = property(term_needs)
    takes = property(term_takes)

    def __post_init__(self) -> None:
        check_range(self, "beta", "snr", "sharpness", above=0)
        ensure(
            self.soft_label.kind != "certainty_margin", "soft_label.kind of mapo must be mixture or ignore"
        )

    def __call__(self, outputs: Outputs) -> LossOutput:
        span_outputs, _ = pair_errors(outputs, self.span, None)
        errors = span_outputs.policy.unbind(1)
        likelihoods = [self._likelihood(error) for error in errors]
        margin = self.sharpness * (likelihoods[0] - likelihoods[1])
        metrics = {
            "margin": margin.detach(),
            "accuracy": (margin > 0).to(margin.dtype),
            "winner_error": outputs.policy[:, 0].detach(),
            "loser_error": outputs.policy[:, 1].detach(),
        }

        def loss(better: int, worse: int) -> PerExample:
            return errors[better] - self.beta * F.logsigmoid(margin if better < worse else -margin)

        return LossOutput(loss=self.soft_label(loss, outputs), metrics=metrics)

    def _likelihood(self, error: PerExample) -> PerExample:
        return self.snr * error / (torch.exp(self.snr * error) - 1)
