"""Restraints: what keeps the winner's error from rising while the loser's is pushed up."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.types import LossMetrics, LossOutput, Need, Outputs, PerExample, expect

Gradient = Float[Tensor, "*batch element"]


@dataclass(frozen=True)
class Safeguard:
    """The push on the loser, scaled such that the winner's error still falls: Diffusion-SDPO (arXiv 2511.03317).

    A step against g_w - lambda g_l, the gradients by predictions, changes the winner's error to first order by
    lambda <g_w, g_l> - ‖g_w‖², at most -mu ‖g_w‖². That predictions stand for weights is the paper's approximation.
    """

    needs = frozenset[Need]({"velocities"})
    mu: float = 0.5
    """Share of its steepest fall that the winner's error keeps, in [0, 1]."""

    def __post_init__(self) -> None:
        check_range(self, "mu", low=0, high=1, prefix="safeguard.")

    def __call__(self, outputs: Outputs) -> tuple[Outputs, LossMetrics]:
        """The same errors, the loser's with lambda times its gradient; every pair has its own lambda."""
        velocities, mask, weights = expect(outputs.velocities), outputs.mask, outputs.frame_weights
        error = (velocities.policy - velocities.target).detach()
        error = error.to(torch.promote_types(error.dtype, torch.float32))
        if weights is not None:
            error = error.where(weights[..., None] > 0, 0) * weights[..., None].to(error.dtype)
        elif mask is not None:
            error = error.where(mask[..., None], 0) / mask.sum(-1)[..., None, None].clamp(min=1)
        scale = self.scale(*rearrange(error, "pair member frame channel -> member pair (frame channel)"))
        winner, loser = outputs.policy.unbind(1)
        loser = loser.detach() + scale * (loser - loser.detach())
        return replace(outputs, policy=torch.stack([winner, loser], 1)), {"loser_scale": scale}

    def scale(self, winner: Gradient, loser: Gradient) -> Float[Tensor, "*batch"]:
        """lambda = (1 - mu) ‖g_w‖² / <g_w, g_l> in [0, 1], and 1 where the gradients do not point the same way."""
        product = (winner * loser).sum(-1)
        scale = (1 - self.mu) * winner.square().sum(-1) / product.clamp(min=torch.finfo(product.dtype).tiny)
        return torch.where(product > 0, scale.clamp(0, 1), 1.0)


@dataclass(frozen=True)
class Anchor:
    """What is added to the loss so that a worse winner costs something by itself; a weight of 0 is off."""

    winner: float = 0.0
    """Weight of the winner's error (CRPO: TangoFlux, Hung et al. 2024, eq. 6, with 1)."""
    reward: float = 0.0
    """Weight of the winner's reward, off the loss: an anchor in the margin's units, alike at any t and beta."""
    hinge: float = 0.0
    """Weight of max(0, -reward) of the winner (DPOP: Pal et al. 2024, eq. 3)."""
    velocity: float = 0.0
    """Weight of the mean squared distance of the policy's velocities from the reference's, both songs."""

    def __post_init__(self) -> None:
        check_range(self, "winner", "reward", "hinge", "velocity", low=0, prefix="anchor.")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"velocities"} if self.velocity else ())

    def __call__(self, output: LossOutput, outputs: Outputs, reward: PerExample) -> LossOutput:
        """The loss with its anchors; `reward` is the winner's implicit reward in the margin's units."""
        loss = output.loss + self.winner * outputs.policy[:, 0] - self.reward * reward
        loss = loss + self.hinge * torch.relu(-reward)
        if not self.velocity:
            return replace(output, loss=loss)
        velocities = expect(outputs.velocities)
        distance = flow.masked_square(velocities.policy - expect(velocities.reference), outputs.mask).mean(1)
        metrics = {**output.metrics, "velocity_distance": distance.detach()}
        return LossOutput(loss=loss + self.velocity * distance, metrics=metrics)
