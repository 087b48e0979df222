"""Concept sliders for a flow: an adapter from prompts alone (Gandikota et al. 2023, arXiv 2311.12092, eq. 8)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.objectives.composition import term_needs, term_takes
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import BatchKind, LossOutput, Outputs, expect


@dataclass(frozen=True)
class Slider:
    """An adapter that, asked for a neutral prompt, answers as the frozen network would for more of a concept.

    At strength s it is fitted to v(neutral) + eta s [v(plus) - v(minus)], all three by the frozen network, at the
    same x_t of its own songs and the same t. Nothing is said about the songs themselves, so no audio is needed.
    """

    batch_kind: ClassVar[BatchKind] = "contrast"

    eta: float = 1.0
    """What strength 1 is worth, in contrasts. With the neutral in the middle of plus and minus, 0.5 is as far as
    the prompt itself goes, and 1 twice as far."""
    timestep: TimestepWeight = field(default_factory=TimestepWeight)
    needs = property(lambda self: term_needs(self, "reference", "velocities", "contrast"))
    takes = property(term_takes)

    def __post_init__(self) -> None:
        check_range(self, "eta", above=0)

    def __call__(self, outputs: Outputs) -> LossOutput:
        velocities, scale = expect(outputs.velocities), expect(outputs.scale)
        neutral, plus, minus = (
            expect(v).detach().to(torch.promote_types(expect(v).dtype, torch.float32))
            for v in (velocities.reference, velocities.plus, velocities.minus)
        )
        shift = self.eta * scale[:, None, None, None] * (plus - minus)
        change = velocities.policy - neutral
        error = flow.masked_square(change - shift, outputs.mask)
        size = flow.masked_square(shift, outputs.mask)
        with torch.no_grad():
            own_size = flow.masked_square(change, outputs.mask)
            product = (own_size + size - error) / 2
            cosine = product / (own_size * size).sqrt().clamp(min=torch.finfo(size.dtype).tiny)
        metrics = {
            "error": error.detach().mean(1),
            "shift": size.mean(1),
            "cosine": cosine.mean(1),
        }
        return LossOutput(loss=(self.timestep(outputs) * error).mean(1), metrics=metrics)
