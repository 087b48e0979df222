"""Trains small policies by the project's objectives in a world whose best policy is known, and measures them.

A policy is the reference's exact velocity plus an MLP that starts at zero, so that step 0 is the reference bit for
bit, as with adapters. Many runs train side by side in one stack of matrices; each run has its own pairs, draws,
weights and gradient norm, and its result does not depend on the other runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.types import Objective, Outputs, Velocities
from tools.bench.gaussian_world import VelocityAt, World, gaussian_net, transport

FREQUENCIES = 4
FEATURES = 1 + 2 * FREQUENCIES
"""Features of the time: its value, and sines and cosines of four frequencies."""
TIMES = (0.01, 0.99)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One objective, one seed, and the treatment of the pairs."""

    objective: Objective
    seed: int = 0
    density: Literal["uniform", "logit_normal"] = "uniform"
    flip_share: float = 0.0
    """Share of pairs whose winner and loser are exchanged."""
    soft: bool = False
    """Whether pairs carry the probability that their winner is the better one."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The training settings that all runs of a stack share."""

    steps: int = 2000
    batch: int = 256
    pairs: int = 20000
    width: int = 128
    learning_rate: float = 2e-3
    """The learning rate at the start; it falls to zero along a cosine."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of songs drawn from the reference, the preferred song first, and their rewards."""

    songs: Float[Tensor, "pair 2 frame dim"]
    rewards: Float[Tensor, "pair 2"]


def label(world: World, count: int, seed: int, flip_share: float = 0.0) -> Pairs:
    """Pairs labelled by Bradley-Terry: the first song wins with probability σ(difference of rewards)."""
    generator = torch.Generator().manual_seed(seed)
    songs = world.reference.sample(2 * count * world.frames, generator).view(count, 2, world.frames, -1)
    rewards = world.song_reward(songs)
    first = torch.rand(count, generator=generator) < (rewards[:, 0] - rewards[:, 1]).sigmoid()
    first = first ^ (torch.rand(count, generator=generator) < flip_share)
    order = torch.stack([~first, first], 1).long()
    return Pairs(
        songs=torch.take_along_dim(songs, order[..., None, None], 1), rewards=rewards.gather(1, order)
    )


class Policies:
    """The reference's velocity plus an MLP for each run, at points [run, point, dim] and times [run, point]."""

    def __init__(self, world: World, seeds: Sequence[int], width: int) -> None:
        self.reference = world.reference
        sizes = [world.dim + FEATURES, width, width, width, world.dim]
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for fan_in, fan_out in pairwise(sizes):
            bound = 0.0 if len(self.weights) == 3 else 1 / math.sqrt(fan_in)
            uniform = torch.stack([torch.rand(fan_in + 1, fan_out, generator=g) for g in generators])
            uniform = (2 * uniform - 1) * bound
            self.weights.append(uniform[:, 1:].clone().requires_grad_())
            self.biases.append(uniform[:, :1].clone().requires_grad_())

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]

    def correction(self, x: Float[Tensor, "run point dim"], t: Tensor) -> Float[Tensor, "run point dim"]:
        """The outputs of the MLPs, which are added to the reference's velocity."""
        angle = math.pi * t[..., None] * 2 ** torch.arange(FREQUENCIES)
        time_features = torch.cat([t[..., None], angle.sin(), angle.cos()], -1)
        h = torch.cat([x, time_features.expand(*x.shape[:-1], FEATURES)], -1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = torch.nn.functional.silu(torch.baddbmm(bias, h, weight))
        return torch.baddbmm(self.biases[-1], h, self.weights[-1])

    def __call__(self, x: Float[Tensor, "run point dim"], t: Tensor) -> Float[Tensor, "run point dim"]:
        return self.reference.velocity(x, t) + self.correction(x, t)


def train_policies(world: World, runs: Sequence[Run], budget: Budget) -> Policies:
    """Train all runs at once with Adam. A run that diverges ends as NaN and changes no other run."""
    policies = Policies(world, [run.seed for run in runs], budget.width)
    data = [label(world, budget.pairs, 1000 + run.seed, run.flip_share) for run in runs]
    draws = [torch.Generator().manual_seed(2000 + run.seed) for run in runs]
    optimiser = torch.optim.Adam(policies.parameters, budget.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, budget.steps)
    states: list[Any] = [{} for _ in runs]
    for _ in range(budget.steps):
        indices = [torch.randint(budget.pairs, (budget.batch,), generator=g) for g in draws]
        songs = torch.stack([pairs.songs[i] for pairs, i in zip(data, indices, strict=True)])
        rewards = torch.stack([pairs.rewards[i] for pairs, i in zip(data, indices, strict=True)])
        t = torch.stack([_times(run, budget.batch, g) for run, g in zip(runs, draws, strict=True)])
        noise = torch.stack([torch.randn(budget.batch, *songs.shape[3:], generator=g) for g in draws])
        velocities = _velocities(policies, songs, noise, t)
        losses = []
        for i, run in enumerate(runs):
            outputs = objective_inputs(
                world, run, {name: v[i] for name, v in velocities.items()}, t[i], rewards[i]
            )
            result = run.objective(replace(outputs, state=states[i]))
            losses.append(result.loss.mean())
            if hasattr(run.objective, "update"):
                means = {name: float(value.mean()) for name, value in result.metrics.items()}
                states[i] = run.objective.update(states[i], means)
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        _clip(policies.parameters)
        optimiser.step()
        schedule.step()
    return policies


def _times(run: Run, count: int, generator: torch.Generator) -> Float[Tensor, "{count}"]:
    low, high = TIMES
    if run.density == "uniform":
        return low + (high - low) * torch.rand(count, generator=generator)
    return torch.randn(count, generator=generator).sigmoid().clamp(low, high)


def _velocities(
    policies: Policies,
    songs: Float[Tensor, "run pair 2 frame dim"],
    noise: Float[Tensor, "run pair frame dim"],
    t: Float[Tensor, "run pair"],
) -> dict[str, Float[Tensor, "run pair 2 frame dim"]]:
    """Velocities for both songs of each pair, at the same noise and time."""
    at = t[..., None, None, None]
    x = (1 - at) * songs + at * noise[:, :, None]
    flat, times = x.flatten(1, 3), at.expand(*x.shape[:-1], 1).flatten(1)
    with torch.no_grad():
        reference = policies.reference.velocity(flat, times)
    policy = reference + policies.correction(flat, times)
    target = noise[:, :, None] - songs
    return {"policy": policy.view_as(x), "reference": reference.view_as(x), "target": target}


def objective_inputs(
    world: World,
    run: Run,
    velocities: dict[str, Float[Tensor, "pair 2 frame dim"]],
    t: Float[Tensor, " pair"],
    rewards: Float[Tensor, "pair 2"],
) -> Outputs:
    """The inputs of the run's objective; errors are means over frames and dimensions, the channels of this world.

    Scores are rewards less the reference's mean. The policy that generated the songs, `old`, is the reference.
    Objectives on songs get the winners; objectives on rated songs get winners with score 1 and losers with -1.
    """
    kind = run.objective.batch_kind
    score = rewards - math.sqrt(world.frames) * world.reference.mean_reward(world.reward)
    soft_label = (rewards[:, 0] - rewards[:, 1]).sigmoid() if run.soft else None
    if kind == "song":
        velocities, score = {name: v[:, :1] for name, v in velocities.items()}, score[:, :1]
    if kind == "rated":
        velocities = {name: v.flatten(0, 1)[:, None] for name, v in velocities.items()}
        score = torch.tensor([1.0, -1.0]).repeat(len(t))[:, None]
        t, soft_label = t.repeat_interleave(2), None
    error: dict[str, Any] = {
        name: (velocities[name] - velocities["target"]).square().mean((-2, -1))
        for name in ("policy", "reference")
    }
    return Outputs(
        **error,
        old=error["reference"],
        t=t,
        mask=torch.ones(*error["policy"].shape, world.frames, dtype=torch.bool),
        score=score,
        soft_label=soft_label,
        velocities=Velocities(**velocities, old=velocities["reference"]),
    )


def _clip(parameters: Sequence[Tensor], max_norm: float = 1.0) -> None:
    """Scale the gradient of each run to a norm of at most `max_norm`."""
    squares = [p.grad.flatten(1).square().sum(1) for p in parameters if p.grad is not None]
    scale = (max_norm / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(scale[:, None, None])


@torch.no_grad()
def measure_policies(
    world: World, policy: VelocityAt, runs: int, points: int = 2048, beta: float = 1.0
) -> list[dict[str, float]]:
    """Measures of each run of a stack.

    `reward`, `kl_reference` and `kl_optimum` (to the optimum at `beta`) of the points that the policy's flow
    generates; `efficiency`, the gain in reward over the largest possible gain at the same KL; `velocity_error`, the
    squared distance from the optimum's velocity over that of the reference; `winner_change` and `loser_change`, the
    change of the mean squared error of fresh pairs against the reference, uniform in time: positive is worse.
    """
    best = world.optimum(beta)
    noise = gaussian_net(points, world.dim, seed=0).repeat(runs, 1, 1)
    songs, log_density = transport(policy, noise)
    kl_reference = (log_density - world.reference.log_density(songs)).mean(1)
    kl_optimum = (log_density - best.log_density(songs)).mean(1)
    reward = world.reward(songs).mean(1)
    velocity_errors = _velocity_error(world, policy, runs, beta)
    winner, loser = _changes(world, policy, runs)
    return [
        {
            "reward": float(reward[i]),
            "kl_reference": float(kl_reference[i]),
            "kl_optimum": float(kl_optimum[i]),
            "efficiency": world.efficiency(float(reward[i]), float(kl_reference[i])),
            "velocity_error": float(velocity_errors[i]),
            "winner_change": float(winner[i]),
            "loser_change": float(loser[i]),
        }
        for i in range(runs)
    ]


def _velocity_error(world: World, policy: VelocityAt, runs: int, beta: float) -> Float[Tensor, " run"]:
    generator, best = torch.Generator().manual_seed(9), world.optimum(beta)
    songs = best.sample(8192, generator)
    t = TIMES[0] + (TIMES[1] - TIMES[0]) * torch.rand(len(songs), generator=generator)
    x = (1 - t)[:, None] * songs + t[:, None] * torch.randn(songs.shape, generator=generator)
    truth = best.velocity(x, t)
    errors = (policy(x.expand(runs, -1, -1), t.expand(runs, -1)) - truth).square().sum(-1).mean(1)
    return errors / (world.reference.velocity(x, t) - truth).square().sum(-1).mean()


def _changes(world: World, policy: VelocityAt, runs: int) -> Float[Tensor, "2 run"]:
    fresh = label(world, 8192 // world.frames, seed=11)
    songs = fresh.songs.transpose(0, 1)
    generator = torch.Generator().manual_seed(10)
    t = TIMES[0] + (TIMES[1] - TIMES[0]) * torch.rand(songs.shape[1:-1], generator=generator)
    noise = torch.randn(songs.shape[1:], generator=generator)
    changes = []
    for song in songs:
        x, target = (
            ((1 - t)[..., None] * song + t[..., None] * noise).flatten(0, 1),
            (noise - song).flatten(0, 1),
        )
        reference_errors = (world.reference.velocity(x, t.flatten()) - target).square().mean(-1)
        policy_errors = (
            (policy(x.expand(runs, -1, -1), t.flatten().expand(runs, -1)) - target).square().mean(-1)
        )
        changes.append((policy_errors - reference_errors).mean(1))
    return torch.stack(changes)
