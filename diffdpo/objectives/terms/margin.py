"""Margins: the implicit rewards of a pair's songs, the beta that scales them, the label they are compared by."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.errors import ensure
from diffdpo.types import LossMetrics, ObjectiveState, Outputs, PerExample, PerSong, expect

Reduction = Literal["mean", "per_frame", "sum"]


def implicit_rewards(outputs: Outputs) -> PerSong:
    """Implicit reward of every song in units of beta/2: the reference's error less the policy's."""
    return expect(outputs.reference) - outputs.policy


def elements(reduction: Reduction, outputs: Outputs) -> PerSong | float:
    """The factor that turns a mean error into a sum over frames, or over latent elements (SimpleTuner, Voxtral)."""
    if reduction == "mean":
        return 1.0
    frames = expect(outputs.mask).sum(-1).to(outputs.policy.dtype)
    return frames if reduction == "per_frame" else frames * expect(outputs.velocities).target.shape[-1]


@dataclass(frozen=True)
class SoftLabel:
    """What a soft label p does to a loss: p is the probability that a pair's winner really is the better song."""

    kind: Literal["mixture", "certainty_margin", "ignore"] = "mixture"
    """mixture: p times the loss plus (1 - p) times that of the reversed pair. certainty_margin: rewards are
    multiplied by 10 (2p - 1) (SmPO-Diffusion, 2025). ignore: every winner counts as the better song."""

    def certainty(self, outputs: Outputs) -> Float[Tensor, "example 1"] | float:
        """The factor of the rewards, 1 unless `kind` is certainty_margin."""
        p = outputs.soft_label
        return 10 * (2 * p - 1)[:, None] if p is not None and self.kind == "certainty_margin" else 1.0

    def __call__(self, loss: Callable[[int, int], PerExample], outputs: Outputs) -> PerExample:
        """Expectation of `loss(better, worse)`, a function of the members' numbers; the winner's is 0."""
        if (p := outputs.soft_label) is None or self.kind != "mixture":
            return loss(0, 1)
        return p * loss(0, 1) + (1 - p) * loss(1, 0)


@dataclass(frozen=True)
class AutoBeta:
    """beta by which a margin of average size has the gradient factor sigmoid(-z) = `target_factor` (SimpleTuner's).

    So no pull saturates, whatever the size of the errors is: beta = -2 logit(target_factor) / size, in `range`.
    """

    target_factor: float = 0.0
    """In [0, 0.5); 0 is a fixed beta."""
    fixed_steps: int = 50
    """Steps with the fixed beta first: where the policy equals its reference, any beta would do."""
    decay: float = 0.99
    """Of the running mean of the margin's size."""
    range: tuple[float, float] = (10.0, 20000.0)

    def __post_init__(self) -> None:
        check_range(self, "target_factor", low=0, below=0.5, prefix="auto_beta.")
        check_range(self, "decay", low=0, below=1, prefix="auto_beta.")
        check_range(self, "fixed_steps", low=0, prefix="auto_beta.")
        is_range = 0 < self.range[0] <= self.range[1] < math.inf
        ensure(is_range, f"auto_beta.range must be two positive numbers in order, got {self.range}")

    def __call__(self, beta: float, state: ObjectiveState) -> float:
        """The beta of a step, from the fixed beta and the running state."""
        size = state.get("margin_size", 0.0)
        if not self.target_factor or not size or state.get("steps", 0) < self.fixed_steps:
            return beta
        logit = math.log(self.target_factor / (1 - self.target_factor))
        return min(self.range[1], max(self.range[0], -2 * logit / size))

    def update(self, state: ObjectiveState, means: ObjectiveState) -> ObjectiveState:
        """The running state after a step with these means of its metrics."""
        if not self.target_factor:
            return {}
        last_size = state.get("margin_size", means["margin_size"])
        size = self.decay * last_size + (1 - self.decay) * means["margin_size"]
        return {"steps": state.get("steps", 0) + 1, "margin_size": size}

    def metrics(self, change: PerExample, beta: float) -> LossMetrics:
        """What `update` reads, the size of `change`, the margins in units of beta/2; and beta, to log."""
        size = change.detach().abs()
        return {"margin_size": size, "beta": torch.full_like(size, beta)} if self.target_factor else {}
