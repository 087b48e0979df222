"""Closed forms of the world with a known optimum, in float64 against autograd, integrals and each other."""

import math

import numpy as np
import pytest
import torch

from tools.bench.gaussian_world import Mixture, Reward, World, gaussian_net, transport

LINEAR = Reward(slope=torch.tensor([1.0, 0.5]))
QUADRATIC = Reward(slope=torch.tensor([0.6, -0.9]), curvature=0.8)


def plane(reward=LINEAR):
    return World(
        reference=Mixture(
            weights=torch.tensor([0.5, 0.3, 0.2]),
            means=torch.tensor([[-1.5, 0.0], [1.0, 1.5], [1.5, -1.5]]),
            variances=torch.tensor([0.25, 0.36, 0.16]),
        ),
        reward=reward,
    )


def wide(mixture):
    return Mixture(**{name: value.double() for name, value in vars(mixture).items()})


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_velocity_is_what_the_score_says(t):
    """E[noise | x] = -t score, so v = -(x + t score) / (1 - t); the score by autograd of the density."""
    mixture = wide(plane().reference)
    x = torch.randn(
        64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    at = torch.full((64,), t, dtype=torch.float64)
    score = torch.autograd.grad(mixture.log_density(x, at).sum(), x)[0]
    expected = -(x + t * score) / (1 - t)
    assert torch.allclose(mixture.velocity(x, at), expected, rtol=1e-10, atol=1e-10)


def test_pure_noise_flows_towards_the_mean_and_a_point_to_itself():
    mixture = wide(plane().reference)
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    mean = mixture.weights @ mixture.means
    one = torch.ones(1, dtype=torch.float64)
    assert torch.allclose(mixture.velocity(x, one), x - mean)
    point = Mixture(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[2.0, 1.0]], dtype=torch.float64),
        variances=torch.zeros(1, dtype=torch.float64),
    )
    assert torch.allclose(point.velocity(x, one * 0.5), (x - point.means) / 0.5)  # (x - song) / t


@pytest.mark.parametrize("reward", [LINEAR, QUADRATIC])
@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_tilted_mixture_is_the_density_times_exp_of_the_reward(reward, beta):
    reference = plane(reward).reference
    best, log_mass = reference.tilt(reward, beta)
    x = 2 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    there = best.log_density(x) - reference.log_density(x)
    assert torch.allclose(there, reward(x) / beta - log_mass, atol=2e-4)


@pytest.mark.parametrize("reward", [LINEAR, QUADRATIC])
def test_expectations_agree_with_an_integral_over_the_plane(reward):
    world = plane(reward)
    axis = torch.linspace(-8, 10, 721, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    best = wide(world.optimum())
    cell = (axis[1] - axis[0]) ** 2
    mass = best.log_density(x).exp() * cell
    r = Reward(slope=reward.slope.double(), curvature=reward.curvature)
    kl, gained = world.frontier(1.0)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
    assert float((mass * r(x)).sum()) == pytest.approx(gained, abs=1e-4)
    distance = best.log_density(x) - wide(world.reference).log_density(x)
    assert float((mass * distance).sum()) == pytest.approx(kl, abs=1e-4)


def test_the_optimum_of_the_plane_is_the_known_one():
    kl, reward = plane().frontier(1.0)
    assert reward == pytest.approx(1.826, abs=0.004)  # 200,000 samples
    assert kl == pytest.approx(0.810, abs=0.004)


def test_the_optimum_is_efficient_and_a_step_aside_is_not():
    world = plane()
    for beta in (0.4, 1.0, 5.0):
        kl, reward = world.frontier(beta)
        assert world.efficiency(reward, kl) == pytest.approx(1, abs=1e-3)
    still = wide(world.reference)  # KL that gains nothing
    assert world.efficiency(still.mean_reward(Reward(slope=LINEAR.slope.double())), 0.5) == pytest.approx(
        0, abs=1e-6
    )
    assert math.isnan(world.efficiency(1.0, 0.0))


def test_the_meter_reads_zero_for_reference_and_optimum_and_the_frontier_between_them():
    world, noise = plane(), gaussian_net(2048, 2, seed=0)
    for mixture in (world.reference, world.optimum()):
        x, log_density = transport(mixture.velocity, noise)
        assert abs(float((log_density - mixture.log_density(x)).mean())) < 1e-3
    kl, reward = world.frontier(1.0)
    assert float((log_density - world.reference.log_density(x)).mean()) == pytest.approx(kl, abs=5e-3)
    assert float(world.reward(x).mean()) == pytest.approx(reward, abs=5e-3)


def test_the_meter_knows_a_shift():
    """Velocity of a Gaussian moved by d: KL to the one at rest is d² / 2s."""
    still = Mixture(weights=torch.ones(1), means=torch.zeros(1, 3), variances=torch.tensor([0.5]))
    moved = Mixture(
        weights=torch.ones(1), means=torch.tensor([[0.6, 0.0, 0.8]]), variances=torch.tensor([0.5])
    )
    x, log_density = transport(moved.velocity, gaussian_net(512, 3, seed=1))
    assert float((log_density - still.log_density(x)).mean()) == pytest.approx(1.0, abs=0.01)


def test_the_net_is_standard_normal_and_evener_than_chance():
    points = gaussian_net(1024, 2, seed=3).double()
    assert points.mean(0).abs().max() < 0.3 / math.sqrt(1024)
    assert np.allclose(np.cov(points.T.numpy()), np.eye(2), atol=0.02)
