"""Steered particles on laws whose velocity and whose tilted law are known in closed form.

Songs are N(0, 1). Under the reward -(x - 2)² / (2 x 0.5) and strength 1 the target is N(4/3, 1/3), and the
normalising constant is E[exp r] = sqrt(1/3) exp(-4/3). Runs are independent populations of particles in one tensor.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support.local_model import LocalModel, LocalNetwork

from diffdpo.errors import ConfigError
from diffdpo.flow import broadcast
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.solver import SOLVERS, build_solver, exact_solvers
from diffdpo.sampling.trajectory import schedule, solve
from diffdpo.sampling.velocity import with_song_estimate
from diffdpo.search.particles import Particles, in_batches, score_steps, steer
from diffdpo.search.weights import (
    LOG_WEIGHT,
    PRODUCT,
    begin_weights,
    effective_size,
    log_constant,
    resample_particles,
    systematic_ancestors,
    weigh_particles,
)

MEAN, VARIANCE, CONSTANT = 4 / 3, 1 / 3, math.sqrt(1 / 3) * math.exp(-4 / 3)
MODE, SIGMA = 1.5, 0.3


def quadratic(x):
    return -((x - 2) ** 2)


def gaussian_velocity(x, t):
    """E[noise - song | x_t = x] for songs N(0, 1)."""
    return (2 * t - 1) * x / ((1 - t) ** 2 + t**2)


def bimodal_velocity(x, t):
    """The same for songs ½ N(-1.5, 0.3²) + ½ N(1.5, 0.3²)."""
    variance = (1 - t) ** 2 * SIGMA**2 + t**2
    gain = (1 - t) * SIGMA**2 / variance
    mode = MODE * torch.tanh(x * (1 - t) * MODE / variance)
    return (x - (mode + gain * (x - (1 - t) * mode))) / t


def particles_of(rule, reward, runs, *, law=gaussian_velocity, solver="sde", steps=64, seed=0):
    """Songs [run, particle] of the runs, their shares, and the estimates of the normalising constant."""
    generator, combs = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    rows = runs * rule.particles

    def draw(*args):
        return torch.randn(rows, 1, 1, generator=generator, dtype=torch.float64)

    def velocity(x, t, state):
        return law(x, broadcast(t).to(x)), state

    def score(song, state):
        return reward(song.flatten())

    times = schedule(steps)
    hook = steer(
        rule,
        score_steps(times, rule.start, rule.resamplings),
        score,
        lambda step: torch.rand(runs, generator=combs, dtype=torch.float64),
    )
    state = {"row": torch.arange(rows)} | begin_weights(rows)
    grid = times[:, None].expand(-1, rows)
    x, state = solve(
        with_song_estimate(velocity),
        draw(),
        grid,
        build_solver(Choice(solver)),
        state,
        lambda step: draw,
        hook,
    )
    state = weigh_particles(state, reward(x.flatten()), rule.potential, rule.strength, last=True)
    shares = torch.softmax(state[LOG_WEIGHT].unflatten(0, (runs, -1)), 1)
    return x.flatten().unflatten(0, (runs, -1)), shares, log_constant(state, runs).exp()


def moments(songs, shares):
    mean = (songs * shares).sum(1).mean().item()
    return mean, (songs.square() * shares).sum(1).mean().item() - mean**2


RULE = Particles(particles=64, strength=1.0, resamplings=5)


@pytest.mark.parametrize("solver", ["sde", "flow_grpo_sde"])
def test_the_quadratic_tilt_is_reached_by_64_particles(solver):
    """Mean and variance within .02 over 2,000 independent runs; the constant without bias."""
    songs, shares, constants = particles_of(RULE, quadratic, 2000, solver=solver)
    mean, variance = moments(songs, shares)
    assert mean == pytest.approx(MEAN, abs=0.02)
    assert variance == pytest.approx(VARIANCE, abs=0.02)
    error = constants.std().item() / len(constants) ** 0.5
    assert 0 < error < 0.002
    if solver == "flow_grpo_sde":  # at these steps its songs have variance 1.00, those of the other .97
        assert constants.mean().item() == pytest.approx(CONSTANT, abs=4 * error)


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_potentials_agree_as_particles_grow(potential):
    """The bias shrinks with the number of particles, whichever the potential; the constant has none."""
    rule = replace(RULE, potential=potential, resamplings=2)
    errors = []
    for count, runs in ((8, 2000), (1024, 100)):
        songs, shares, constants = particles_of(
            replace(rule, particles=count), quadratic, runs, solver="flow_grpo_sde", steps=24
        )
        mean, variance = moments(songs, shares)
        errors.append(abs(mean - MEAN) + abs(variance - VARIANCE))
        error = constants.std().item() / runs**0.5
        assert constants.mean().item() == pytest.approx(CONSTANT, abs=4 * error)
    assert errors[1] < 0.04
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("solver", exact_solvers())
def test_every_exact_solver_shifts_mass_between_modes(solver):
    """Reward x / 2 on the bimodal law: P(x > 0) = 1 / (1 + exp(-1.5)) = .818."""
    songs, shares, _ = particles_of(RULE, lambda x: x / 2, 400, law=bimodal_velocity, solver=solver)
    assert (shares * (songs > 0)).sum(1).mean().item() == pytest.approx(0.8176, abs=0.025)


def test_strength_zero_is_the_law_of_the_model():
    """No weight, no copy: bit for bit the songs that are not steered."""
    songs, shares, constants = particles_of(replace(RULE, strength=0.0), quadratic, 50)
    plain, _, _ = particles_of(replace(RULE, resamplings=0), quadratic, 50)
    assert (shares == 1 / 64).all()
    assert torch.allclose(constants, torch.ones(50, dtype=torch.float64))
    assert torch.equal(songs, plain)
    assert songs.mean().item() == pytest.approx(0, abs=0.07)
    assert songs.var().item() == pytest.approx(1, abs=0.07)


def test_a_constant_in_the_reward_changes_no_song():
    songs, shares, constants = particles_of(RULE, quadratic, 20)
    shifted, shifted_shares, shifted_constants = particles_of(RULE, lambda x: quadratic(x) + 300, 20)
    assert torch.equal(shifted, songs)
    assert torch.allclose(shifted_shares, shares, atol=1e-9)
    assert torch.allclose(shifted_constants.log(), constants.log() + 300)


def test_a_seed_decides():
    first, again, third = (particles_of(RULE, quadratic, 3, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_the_potentials_of_a_particle_multiply_to_the_tilt(potential):
    state = begin_weights(3)
    rewards = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in rewards[:-1]:
        state = weigh_particles(state, row, potential, 2.5)
    state = weigh_particles(state, rewards[-1], potential, 2.5, last=True)
    assert torch.allclose(state[PRODUCT], 2.5 * rewards[-1], atol=1e-12)
    assert torch.allclose(state[LOG_WEIGHT], 2.5 * rewards[-1], atol=1e-12)


def test_effective_size_and_its_trigger():
    assert effective_size(torch.zeros(1, 8)).item() == pytest.approx(8)
    assert effective_size(torch.tensor([[0.0, -torch.inf, -torch.inf, 0.0]])).item() == pytest.approx(2)
    uneven = torch.tensor([[0.0, -9, -9, -9], [0.0, 0, 0, 0]]).double().flatten()
    state = begin_weights(8) | {"row": torch.arange(8), LOG_WEIGHT: uneven}
    x, after = resample_particles(torch.arange(8.0)[:, None, None], state, torch.full((2,), 0.5), 0.5)
    assert after["row"].tolist() == [0, 0, 0, 0, 4, 5, 6, 7]  # the second run stays as it is
    assert x.flatten().tolist() == [0, 0, 0, 0, 4, 5, 6, 7]
    assert (after[LOG_WEIGHT] == 0).all()
    assert torch.allclose(log_constant(after, 2), log_constant(state, 2))
    _, untouched = resample_particles(x, state, torch.full((2,), 0.5), 0.2)
    assert untouched is state


def test_systematic_ancestors_are_the_floor_or_the_ceiling_of_their_share_and_unbiased():
    weights = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, 0.5]], dtype=torch.float64).repeat(20_000, 1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ancestors = systematic_ancestors(weights, uniform)
    copies = torch.stack([(ancestors == place).sum(1) for place in range(5)], 1)
    expectation = 5 * torch.softmax(weights[0], 0)
    assert (copies >= expectation.floor()).all()
    assert (copies <= expectation.ceil()).all()
    assert torch.allclose(copies.double().mean(0), expectation, atol=0.02)
    assert (copies[:, 2] == 0).all()
    assert (ancestors.diff(dim=1) >= 0).all()


def test_steps_that_are_scored_are_even_late_and_few():
    times = torch.linspace(1, 0, 21)
    assert score_steps(times, 1.0, 100) == list(range(19))  # never the last: its estimate is the song
    steps = score_steps(times, 0.7, 4)
    assert len(steps) == 4
    assert all(times[step] <= 0.7 for step in steps)
    assert len({late - early for early, late in pairwise(steps)}) <= 2
    assert score_steps(times, 0.01, 4) == []
    assert score_steps(times, 0.7, 0) == []


@pytest.mark.parametrize("name", SOLVERS)
def test_only_stochastic_and_exact_solvers_are_taken(name):
    rule, sampling = Particles(particles=4), SamplingConfig(solver=Choice(name))
    if name in exact_solvers():
        rule.check(sampling, 8)
        with pytest.raises(ConfigError, match=r"budget=3 songs.*args\.particles"):
            rule.check(sampling, 3)
    else:
        with pytest.raises(ConfigError, match="sde, flow_grpo_sde, glass") as error:
            rule.check(sampling, 8)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "args", [{"particles": 0}, {"share": 2}, {"start": 0}, {"strength": -1}, {"resamplings": -1}]
)
def test_values_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        Particles(**args)


def test_a_velocity_in_batches_is_the_velocity():
    network = LocalModel(network=LocalNetwork(0)).network
    pull = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))

    def velocity(x, t, state):
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
        v = network(x, t, pull[state["row"]], torch.zeros_like(x), mask)
        return v, state | {"song": x - v}

    x, t, state = torch.randn(7, 5, 4), torch.linspace(0.1, 0.9, 7), {"row": torch.arange(7).flip(0)}
    with torch.no_grad():
        v, after = velocity(x, t, state)
        w, batched = in_batches(velocity, 3)(x, t, state)
    assert torch.allclose(v, w, atol=1e-6)
    assert torch.allclose(after["song"], batched["song"], atol=1e-6)
    assert torch.equal(after["row"], batched["row"])
