"""Solver steps against closed forms: the order of each, what each is exact on, and what a choice may say."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from diffdpo import flow
from diffdpo.errors import ConfigError
from diffdpo.registry import Choice
from diffdpo.sampling.solver import SOLVERS, build_solver, exact_solvers
from diffdpo.sampling.trajectory import schedule, solve

MU, SIGMA = 0.7, 0.5
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
STOCHASTIC = [name for name, solver in SOLVERS.items() if solver.stochastic]
ORDERS = [("euler", 1), ("midpoint", 2), ("adams_bashforth", 2), ("dpmpp_2m", 2)]


def latents(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def no_noise(step):
    def refuse(purpose, state):
        raise AssertionError("a deterministic step takes no noise")

    return refuse


def end_of(velocity, x, times, solver, noise=no_noise):
    """Where a velocity field takes x along the times, a row a sample."""
    state = {"row": torch.arange(len(x))}
    return solve(lambda x, t, state: (velocity(x, t), state), x, times, solver, state, noise)[0]


def gaussian_velocity(x, t):
    """E[noise - song | x_t = x] for song ~ N(MU, SIGMA^2): linear regression, no network."""
    t = t[:, None, None]
    variance = (1 - t) ** 2 * SIGMA**2 + t**2
    return -MU + (t - (1 - t) * SIGMA**2) / variance * (x - (1 - t) * MU)


def gaussian_error(steps, solver, t0=1.0, t1=0.0, **settings):
    """Worst distance from where the flow takes noise between two times: it keeps every quantile."""
    z = latents(1, 64, 4)
    t0, t1 = torch.tensor([t0, t1], dtype=torch.float64)
    begin, end = ((1 - t) * MU + ((1 - t) ** 2 * SIGMA**2 + t**2).sqrt() * z for t in (t0, t1))
    times = t1 + (t0 - t1) * schedule(steps, **settings)
    return (end_of(gaussian_velocity, begin, times[:, None], SOLVERS[solver]) - end).abs().max().item()


def test_the_orders_of_all_deterministic_solvers_are_tested():
    assert sorted(name for name, _ in ORDERS) == sorted(DETERMINISTIC)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solvers_follow_a_curve_that_is_not_linear_in_x_at_their_order(solver, order):
    """dx/dt = t x^2, so 1/x + t^2/2 stays."""
    times = 0.2 + 0.6 * schedule(400, sway=-0.5)
    begin = torch.linspace(0.5, 1.0, 8, dtype=torch.float64).view(1, 2, 4)
    end = 1 / (1 / begin + (times[0] ** 2 - times[-1] ** 2) / 2)

    def curve(x, t):
        return t[:, None, None] * x**2

    coarse, fine = (
        (end_of(curve, begin, grid[:, None], SOLVERS[solver]) - end).abs().max().item()
        for grid in (times[::2], times)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
@pytest.mark.parametrize("settings", [{}, {"shift": 2.0}, {"sway": -0.7}, {"shift": 0.5, "sway": 0.4}])
def test_solvers_follow_the_gaussian_at_their_order_on_any_schedule(solver, order, settings):
    coarse, fine = (gaussian_error(n, solver, t0=0.9, t1=0.2, **settings) for n in (200, 400))
    gained = solver == "midpoint"  # its leading error is zero on this very flow
    assert math.log2(coarse / fine) == pytest.approx(order + gained, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_all_the_way_from_noise_to_song_too(solver, order):
    """Where l is infinite DPM-Solver++ loses a logarithm."""
    coarse, fine = (gaussian_error(n, solver) for n in (400, 800))
    assert fine < 0.01
    assert math.log2(coarse / fine) > order - 0.2


@pytest.mark.parametrize("solver", ["midpoint", "adams_bashforth", "dpmpp_2m"])
def test_second_order_needs_fewer_evaluations(solver):
    evaluations = SOLVERS[solver].evaluations
    assert gaussian_error(16 // evaluations, solver) < gaussian_error(48, "euler")


@pytest.mark.parametrize(
    "choice", [*map(Choice, SOLVERS), Choice("glass", {"inner": 1}), Choice("glass", {"inner": 3})], ids=str
)
def test_a_step_computes_as_many_velocities_as_its_solver_says(choice):
    solver, calls = build_solver(choice), []
    end_of(
        lambda x, t: calls.append(t) or x,
        latents(1, 2, 3),
        schedule(5)[:, None],
        solver,
        lambda step: lambda purpose, state: latents(1, 2, 3, seed=step),
    )
    assert len(calls) == 5 * solver.evaluations


def test_every_deterministic_solver_is_exact_on_a_constant_velocity_from_wherever_each_song_begins():
    song, noise = latents(2, 5, 4), latents(2, 5, 4, seed=1)
    strength = torch.tensor([1.0, 0.4], dtype=torch.float64)
    start = flow.interpolate(song, noise, strength)
    times = schedule(6, shift=2.0)[:, None] * strength
    for name in DETERMINISTIC:
        end = end_of(lambda x, t: flow.velocity(song, noise), start, times, SOLVERS[name])
        assert torch.allclose(end, song, atol=1e-12), name


def test_dpmpp_equals_the_scheduler_of_diffusers():
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True,
        final_sigmas_type="zero",
    )  # fmt: skip
    times = schedule(12, shift=2.0)
    scheduler.set_timesteps(12)
    scheduler.sigmas = times
    theirs = noise = latents(1, 16, 4)
    for step, now in zip(scheduler.timesteps, times, strict=False):
        theirs = scheduler.step(gaussian_velocity(theirs, now[None]), step, theirs).prev_sample
    ours = end_of(gaussian_velocity, noise, times[:, None], SOLVERS["dpmpp_2m"])
    assert torch.allclose(ours, theirs.double(), atol=1e-6)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        (Choice("eulr"), ConfigError, "unknown solver 'eulr'. Did you mean 'euler'"),
        (Choice("sde", {"etta": 1.0}), ConfigError, "solver 'sde' has no 'etta'. Did you mean 'eta'"),
        (Choice("euler", {"eta": 1.0}), ConfigError, "solver 'euler' has no 'eta'. Known: none"),
        (Choice("sde", {"velocity": 1.0}), ConfigError, "has no 'velocity'"),
        (Choice("sde", {"eta": "much"}), ValueError, "eta of solver 'sde' must be a number, got 'much'"),
        (Choice("glass", {"inner": 0}), ValueError, "inner of solver 'glass' must be a whole number of at"),
        (Choice("glass", {"inner": 2.5}), ValueError, "inner of solver 'glass' must be a whole number of at"),
    ],
    ids=str,
)
def test_wrong_choices_are_refused(choice, error, message):
    with pytest.raises(error, match=message):
        build_solver(choice)


def test_the_exact_solvers_are_stochastic_ones():
    assert set(exact_solvers()) < set(STOCHASTIC)
    assert all(SOLVERS[name].exact for name in DETERMINISTIC)
