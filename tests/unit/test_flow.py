"""Rectified-flow maths against closed forms."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from diffdpo import flow

MU, SIGMA = 0.7, 0.5


def latents(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_velocity_leads_back_to_song_and_noise_exactly():
    song, noise = latents(3, 5, 4), latents(3, 5, 4, seed=1)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x, v = flow.interpolate(song, noise, t), flow.velocity(song, noise)
    assert torch.allclose(flow.song_from_velocity(x, v, t), song, atol=1e-14)
    assert torch.allclose(flow.noise_from_velocity(x, v, t), noise, atol=1e-14)


def test_the_ends_of_the_path_are_song_and_noise():
    song, noise = latents(2, 3, 4), latents(2, 3, 4, seed=1)
    assert torch.equal(flow.interpolate(song, noise, torch.zeros(2).double()), song)
    assert torch.equal(flow.interpolate(song, noise, torch.ones(2).double()), noise)


def test_errors_of_velocity_song_and_noise_are_the_same_up_to_powers_of_t():
    song, noise, error = (latents(2, 6, 4, seed=s) for s in range(3))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    x, v = flow.interpolate(song, noise, t), flow.velocity(song, noise) + error
    mask = torch.ones(2, 6, dtype=torch.bool)
    e = flow.masked_error(v, flow.velocity(song, noise), mask)
    assert torch.allclose(
        flow.masked_error(flow.song_from_velocity(x, v, t), song, mask), t**2 * e, rtol=1e-10
    )
    assert torch.allclose(
        flow.masked_error(flow.noise_from_velocity(x, v, t), noise, mask), (1 - t) ** 2 * e, rtol=1e-10
    )


def test_padding_counts_nowhere_not_even_a_nan():
    prediction, target = latents(2, 6, 4), latents(2, 6, 4, seed=1)
    mask = flow.mask_from_frames(torch.tensor([6, 4]), 6)
    alone = flow.masked_error(prediction[1:, :4], target[1:, :4], mask[1:, :4])
    prediction[1, 4:] = float("nan")
    both = flow.masked_error(prediction, target, mask)
    assert torch.equal(both[1:], alone)
    assert torch.isfinite(both).all()


def test_the_gradient_of_padding_is_zero():
    prediction = latents(1, 4, 2).requires_grad_()
    flow.masked_error(
        prediction, latents(1, 4, 2, seed=1), flow.mask_from_frames(torch.tensor([3]), 4)
    ).sum().backward()
    assert prediction.grad[0, 3].abs().max() == 0
    assert prediction.grad[0, :3].abs().min() > 0


@pytest.mark.parametrize(
    ("forward", "reduced"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_errors_are_reduced_in_at_least_fp32(forward, reduced):
    dtype = getattr(torch, forward)
    error = flow.frame_errors(latents(1, 2, 3).to(dtype), latents(1, 2, 3, seed=1).to(dtype))
    assert error.dtype == getattr(torch, reduced)


def test_a_bf16_prediction_is_measured_to_fp32_accuracy():
    prediction = latents(1, 256, 64, dtype=torch.float32).bfloat16()
    target = latents(1, 256, 64, seed=1, dtype=torch.float32)
    mask = torch.ones(1, 256, dtype=torch.bool)
    exact = ((prediction.double() - target.double()) ** 2).mean()
    assert flow.masked_error(prediction, target, mask).item() == pytest.approx(exact.item(), rel=1e-6)


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
    times = t1 + (t0 - t1) * flow.schedule(steps, **settings)
    return (
        (flow.solve(gaussian_velocity, begin, times[:, None], flow.SOLVERS[solver]) - end).abs().max().item()
    )


ORDERS = [("euler", 1), ("midpoint", 2), ("adams_bashforth", 2), ("dpmpp_2m", 2)]


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solvers_follow_a_curve_that_is_not_linear_in_x_at_their_order(solver, order):
    """dx/dt = t x^2, so 1/x + t^2/2 stays."""
    times = 0.2 + 0.6 * flow.schedule(400, sway=-0.5)
    begin = torch.linspace(0.5, 1.0, 8, dtype=torch.float64).view(1, 2, 4)
    end = 1 / (1 / begin + (times[0] ** 2 - times[-1] ** 2) / 2)

    def curve(x, t):
        return t[:, None, None] * x**2

    coarse, fine = (
        (flow.solve(curve, begin, grid[:, None], flow.SOLVERS[solver]) - end).abs().max().item()
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
    evaluations = flow.SOLVERS[solver].evaluations
    assert gaussian_error(16 // evaluations, solver) < gaussian_error(48, "euler")


def test_solvers_ask_as_often_as_they_say():
    for name, solver in flow.SOLVERS.items():
        asked = []
        flow.solve(
            lambda x, t, asked=asked: asked.append(t) or x,
            latents(1, 2, 3),
            flow.schedule(5)[:, None],
            solver,
        )
        assert len(asked) == 5 * solver.evaluations, name


def test_every_solver_is_exact_on_a_constant_velocity_from_wherever_each_song_begins():
    song, noise = latents(2, 5, 4), latents(2, 5, 4, seed=1)
    strength = torch.tensor([1.0, 0.4], dtype=torch.float64)
    start = flow.interpolate(song, noise, strength)
    for name, solver in flow.SOLVERS.items():
        found = flow.solve(
            lambda x, t: flow.velocity(song, noise),
            start,
            flow.schedule(6, shift=2.0)[:, None] * strength,
            solver,
        )
        assert torch.allclose(found, song, atol=1e-12), name


def test_dpmpp_equals_the_scheduler_of_diffusers():
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True,
        final_sigmas_type="zero",
    )  # fmt: skip
    times = flow.schedule(12, shift=2.0)
    scheduler.set_timesteps(12)
    scheduler.sigmas = times
    theirs = noise = latents(1, 16, 4)
    for step, now in zip(scheduler.timesteps, times, strict=False):
        theirs = scheduler.step(gaussian_velocity(theirs, now[None]), step, theirs).prev_sample
    ours = flow.solve(gaussian_velocity, noise, times[:, None], flow.SOLVERS["dpmpp_2m"])
    assert torch.allclose(ours, theirs.double(), atol=1e-6)


def test_schedules_go_from_noise_to_song_and_bend_as_published():
    even = flow.schedule(10)
    assert torch.allclose(even, torch.linspace(1, 0, 11, dtype=torch.float64))
    assert torch.allclose(flow.schedule(10, shift=3.0), 3 * even / (1 + 2 * even))
    swayed = 1 - flow.schedule(10, sway=-1.0)
    assert torch.allclose(swayed, 1 - torch.cos(torch.pi / 2 * (1 - even)))
    for settings in ({"shift": 3.0}, {"shift": 0.2, "sway": 1.0}, {"sway": -1.0}):
        times = flow.schedule(50, **settings)
        assert times[0] == 1
        assert times[-1].abs() < 1e-15
        assert (times.diff() < 0).all()


def test_the_conditional_mean_of_the_target_is_the_gaussian_velocity():
    """Catches song and noise swapped, which the Euler test alone cannot see."""
    generator = torch.Generator().manual_seed(0)
    song = MU + SIGMA * torch.randn(200_000, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, 1, 1, generator=generator, dtype=torch.float64)
    t = torch.full((200_000,), 0.6, dtype=torch.float64)
    x, v = flow.interpolate(song, noise, t).flatten(), flow.velocity(song, noise).flatten()
    slope, intercept = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), v).solution
    zero, one = gaussian_velocity(torch.tensor([[[0.0]], [[1.0]]]).double(), t[:2]).flatten()
    assert intercept.item() == pytest.approx(zero.item(), abs=0.01)
    assert slope.item() == pytest.approx((one - zero).item(), abs=0.01)


@pytest.mark.parametrize(
    ("density", "mean", "median"),
    [("logit_normal", 0.0, 0.5), ("logit_normal", 1.0, 0.731), ("uniform", 0.0, 0.5)],
)
def test_timesteps_have_the_median_of_their_density(density, mean, median):
    timesteps = flow.Timesteps(density, mean)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([timesteps.draw(generator) for _ in range(4000)])
    assert drawn.min() > 0 or density == "uniform"
    assert drawn.max() < 1
    assert drawn.median().item() == pytest.approx(median, abs=0.03)


def test_a_logit_normal_needs_a_spread():
    with pytest.raises(ValueError, match="std must be positive"):
        flow.Timesteps(std=0.0)
    assert math.isfinite(flow.Timesteps(std=0.1).draw(torch.Generator()).item())
