"""A world whose best policy is known in closed form: Gaussian mixtures under rectified flow, tilted by a reward.

The reference is a mixture of isotropic Gaussians, whose velocity is a formula. For a reward that is linear or
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
        squared_distance = (
            x.square().sum(-1, keepdim=True)
            - 2 * (1 - t) * (x @ self.means.T)
            + (1 - t) ** 2 * self.means.square().sum(-1)
        )
        normaliser = self.dim / 2 * torch.log(2 * math.pi * variance)
        return self.weights.log() - squared_distance / (2 * variance) - normaliser, variance

    def log_density(self, x: Points, t: Tensor | float = 0.0) -> Values:
        """log p_t(x): of the mixture itself at t=0, of pure noise at t=1."""
        return self._joint(x, torch.as_tensor(t)[..., None])[0].logsumexp(-1)

    def velocity(self, x: Points, t: Tensor | float) -> Points:
        """E[noise - song | x_t = x]; of a component (t - (1-t) s) d / V - mean, where d = x - (1-t) mean."""
        t = torch.as_tensor(t)[..., None]
        joint, variance = self._joint(x, t)
        share = joint.softmax(-1)
        slope = (t - (1 - t) * self.variances) / variance
        return (share * slope).sum(-1, keepdim=True) * x - (share * (1 + (1 - t) * slope)) @ self.means

    def tilt(self, reward: Reward, beta: float) -> tuple["Mixture", float]:
        """The mixture ∝ density · exp(reward / beta), and the logarithm of its normalising constant."""
        prior_variances, slope = self.variances, reward.slope / beta
        tilted_variances = 1 / (1 / prior_variances + reward.curvature / beta)
        means = tilted_variances[:, None] * (self.means / prior_variances[:, None] + slope)
        mass = (
            self.weights.log()
            + self.dim / 2 * torch.log(tilted_variances / prior_variances)
            + means.square().sum(1) / (2 * tilted_variances)
            - self.means.square().sum(1) / (2 * prior_variances)
        )
        mixture = Mixture(weights=mass.softmax(0), means=means, variances=tilted_variances)
        return mixture, float(mass.logsumexp(0))

    def mean_reward(self, reward: Reward) -> float:
        """The mean of a reward under the mixture."""
        squares = self.means.square().sum(1) + self.dim * self.variances
        return float(self.weights @ (self.means @ reward.slope - reward.curvature / 2 * squares))


@dataclass(frozen=True, kw_only=True)
class World:
    """A reference and a reward; of two songs the first is preferred with probability σ(difference of rewards).

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
        return self.reference.tilt(self.reward, beta)[0]

    def song_reward(self, songs: Float[Tensor, "*batch frame dim"]) -> Values:
        return self.reward(songs).sum(-1) / math.sqrt(self.frames)

    def frontier(self, beta: float) -> tuple[float, float]:
        """KL(optimum ‖ reference) and mean reward of the optimum at beta, of a frame, in closed form."""
        best, log_mass = self.reference.tilt(self.reward, beta)
        optimum_reward = best.mean_reward(self.reward)
        return optimum_reward / beta - log_mass, optimum_reward

    @cached_property
    def _frontier(self) -> tuple[np.ndarray, np.ndarray]:
        points = [self.frontier(float(beta)) for beta in np.geomspace(300, 0.02, 3000)]
        kl, rewards = np.array([(0.0, self.reference.mean_reward(self.reward)), *points]).T
        return kl, rewards

    def best_reward(self, kl: float) -> float:
        """The largest mean reward that a policy at this KL from the reference can have."""
        return float(np.interp(kl, *self._frontier))

    def efficiency(self, reward: float, kl: float) -> float:
        """The gain in reward over the largest possible gain at the same KL; NaN where KL is at most 0.005."""
        if not kl > 0.005:
            return math.nan
        start = self.reference.mean_reward(self.reward)
        return (reward - start) / (self.best_reward(kl) - start)


def gaussian_net(count: int, dim: int, seed: int) -> Float[Tensor, "{count} {dim}"]:
    """Standard normal points from a scrambled Sobol sequence (Owen 1998), more even than random points."""
    uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(torch.get_default_dtype())


def transport(
    velocity: VelocityAt, noise: Points, steps: int = 50, end: float = 0.002
) -> tuple[Points, Values]:
    """The points to which the flow takes noise (Heun's steps from t=1 to `end`), and their log densities.

    d log p / dt = -div v along the path (Chen et al. 2018, eq. 8), the divergence exact, one forward-mode
    derivative a dimension.
    """
    dim = noise.shape[-1]
    basis = torch.eye(dim, dtype=noise.dtype)

    def velocity_and_divergence(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        def derivative(direction: Tensor) -> Any:
            return torch.func.jvp(lambda y: velocity(y, t), (x,), (direction.expand_as(x),))

        v, changes = torch.func.vmap(derivative, out_dims=(0, 0))(basis)
        return v[0], changes.diagonal(dim1=0, dim2=-1).sum(-1)

    x = noise
    log_density = -x.square().sum(-1) / 2 - dim / 2 * math.log(2 * math.pi)
    times = torch.linspace(1, end, steps + 1, dtype=noise.dtype)
    for t, t_next in pairwise(times):
        first, divergence = velocity_and_divergence(x, t)
        second, divergence_next = velocity_and_divergence(x + (t_next - t) * first, t_next)
        x = x + (t_next - t) * (first + second) / 2
        log_density = log_density - (t_next - t) * (divergence + divergence_next) / 2
    return x, log_density
