"""A world in which the best policy is known: Gaussian mixtures under rectified flow, tilted by a reward.

The reference is a mixture of isotropic Gaussians, so its velocity is a formula. For a reward that is linear or
quadratic, reference · exp(reward / beta) is a mixture again: what preference optimisation should find (Rafailov
et al. 2023, eq. 4) is known in closed form, and so is the most reward any policy can have at a given distance from
the reference. Conventions are those of `flow`: t=1 is noise, the velocity is E[noise - song].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "*batch dim"]
Values = Float[Tensor, "*batch"]
VelocityAt = Callable[[Tensor, Tensor], Tensor]
"""From points [*batch, dim] and times (a scalar, or [*batch]) to velocities [*batch, dim]."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """r(x) = slope · x - curvature |x|² / 2."""

    slope: Float[Tensor, " dim"]
    curvature: float = 0.0

    def __call__(self, x: Points) -> Values:
        return x @ self.slope - self.curvature / 2 * x.square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Isotropic Gaussians with weights that sum to one."""

    weights: Float[Tensor, " component"]
    means: Float[Tensor, "component dim"]
    variances: Float[Tensor, " component"]

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "{count} dim"]:
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dim, generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.variances[component].sqrt()[:, None] * noise

    def _joint(self, x: Points, t: Tensor) -> tuple[Tensor, Tensor]:
        """log(weight · density) of each component of the mixture noised to time t, and its variances there."""
        variance = (1 - t) ** 2 * self.variances + t**2
        away = (
            x.square().sum(-1, keepdim=True)
            - 2 * (1 - t) * (x @ self.means.T)
            + (1 - t) ** 2 * self.means.square().sum(-1)
        )
        normaliser = self.dim / 2 * torch.log(2 * math.pi * variance)
        return self.weights.log() - away / (2 * variance) - normaliser, variance

    def log_density(self, x: Points, t: Tensor | float = 0.0) -> Values:
        """log p_t(x): of the mixture itself at t=0, of pure noise at t=1."""
        return self._joint(x, torch.as_tensor(t)[..., None])[0].logsumexp(-1)

    def velocity(self, x: Points, t: Tensor | float) -> Points:
        """E[noise - song | x_t = x]: a component at distance d = x - (1-t) mean says (t - (1-t) s) d / V - mean."""
        t = torch.as_tensor(t)[..., None]
        joint, variance = self._joint(x, t)
        share = joint.softmax(-1)
        slope = (t - (1 - t) * self.variances) / variance
        return (share * slope).sum(-1, keepdim=True) * x - (share * (1 + (1 - t) * slope)) @ self.means

    def tilted(self, reward: Reward, beta: float) -> tuple["Mixture", float]:
        """The mixture ∝ this · exp(reward / beta), and the logarithm of what normalises it."""
        before, slope = self.variances, reward.slope / beta
        after = 1 / (1 / before + reward.curvature / beta)
        means = after[:, None] * (self.means / before[:, None] + slope)
        mass = (
            self.weights.log()
            + self.dim / 2 * torch.log(after / before)
            + means.square().sum(1) / (2 * after)
            - self.means.square().sum(1) / (2 * before)
        )
        mixture = Mixture(weights=mass.softmax(0), means=means, variances=after)
        return mixture, float(mass.logsumexp(0))

    def expected(self, reward: Reward) -> float:
        """E[reward]."""
        squares = self.means.square().sum(1) + self.dim * self.variances
        return float(self.weights @ (self.means @ reward.slope - reward.curvature / 2 * squares))


@dataclass(frozen=True, kw_only=True)
class World:
    """A reference, and the reward by which preferences are made: the better of two wins with σ(difference).

    A song has one or many frames, all independently from the reference; its reward is the sum of theirs over
    sqrt(frames), so that songs differ by as much however long they are. All optima are given for a frame: beta
    below means that each is tilted by reward / beta, which is the song's tilt at beta / sqrt(frames).
    """

    reference: Mixture
    reward: Reward
    frames: int = 1

    @property
    def dim(self) -> int:
        return self.reference.dim

    def optimum(self, beta: float = 1.0) -> Mixture:
        return self.reference.tilted(self.reward, beta)[0]

    def song_reward(self, songs: Float[Tensor, "*batch frame dim"]) -> Values:
        return self.reward(songs).sum(-1) / math.sqrt(self.frames)

    def frontier(self, beta: float) -> tuple[float, float]:
        """KL(optimum ‖ reference) and expected reward of the optimum at beta, exactly; of a frame."""
        best, log_mass = self.reference.tilted(self.reward, beta)
        gained = best.expected(self.reward)
        return gained / beta - log_mass, gained

    @cached_property
    def _frontier(self) -> tuple[np.ndarray, np.ndarray]:
        points = [self.frontier(float(beta)) for beta in np.geomspace(300, 0.02, 3000)]
        kl, gained = np.array([(0.0, self.reference.expected(self.reward)), *points]).T
        return kl, gained

    def best_reward(self, kl: float) -> float:
        """The most reward a policy at this KL from the reference can have."""
        return float(np.interp(kl, *self._frontier))

    def efficiency(self, reward: float, kl: float) -> float:
        """Reward gained over the most that could be at the same KL; NaN where KL is too small to tell."""
        if not kl > 0.005:
            return math.nan
        start = self.reference.expected(self.reward)
        return (reward - start) / (self.best_reward(kl) - start)


def gaussian_net(count: int, dim: int, seed: int) -> Float[Tensor, "{count} {dim}"]:
    """Standard normal points spread more evenly than random ones: scrambled Sobol (Owen 1998)."""
    uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(torch.get_default_dtype())


def transport(
    velocity: VelocityAt, noise: Points, steps: int = 50, end: float = 0.002
) -> tuple[Points, Values]:
    """Where the flow takes noise (Heun's steps from t=1 to `end`), and log densities there.

    d log p / dt = -div v along the path (Chen et al. 2018, eq. 8), the divergence exact, one forward-mode
    derivative a dimension.
    """
    dim = noise.shape[-1]
    basis = torch.eye(dim, dtype=noise.dtype)

    def at(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        def along(direction: Tensor) -> Any:
            return torch.func.jvp(lambda y: velocity(y, t), (x,), (direction.expand_as(x),))

        v, changes = torch.func.vmap(along, out_dims=(0, 0))(basis)
        return v[0], changes.diagonal(dim1=0, dim2=-1).sum(-1)

    x = noise
    log_density = -x.square().sum(-1) / 2 - dim / 2 * math.log(2 * math.pi)
    times = torch.linspace(1, end, steps + 1, dtype=noise.dtype)
    for now, then in pairwise(times):
        first, spread = at(x, now)
        second, spread_then = at(x + (then - now) * first, then)
        x = x + (then - now) * (first + second) / 2
        log_density = log_density - (then - now) * (spread + spread_then) / 2
    return x, log_density
