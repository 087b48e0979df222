"""Stochastic solver steps, and the equations behind them.

A step is exact if it keeps the marginal distributions of the flow as the number of steps grows; a bimodal law
with a known velocity tells exact steps from others (tests/unit/sampling/test_stochastic.py).
"""

import math

import torch

from diffdpo.flow import Latents, broadcast, noise_from_velocity, song_from_velocity
from diffdpo.sampling.trajectory import Noise, RowTimes, State, Velocity


def sde(
    velocity: Velocity,
    x: Latents,
    t: RowTimes,
    t_next: RowTimes,
    state: State,
    noise: Noise,
    *,
    eta: float = 1.0,
) -> tuple[Latents, State]:
    """Euler-Maruyama on dx = (v - g²/2 score) dt + g dw with g² = 2 eta t (1 - t) (Song et al. 2021, eq. 6).

    The score is -(x + (1 - t) v) / t. Exact; eta 0 is Euler's step.
    """
    v, state = velocity(x, t, state)
    dt, variance = t - t_next, 2 * eta * t * (1 - t)
    score = -noise_from_velocity(x, v, t.to(x)) / broadcast(t).to(x)
    drift = -broadcast(dt).to(x) * v + broadcast(dt * variance / 2).to(x) * score
    return x + drift + broadcast((variance * dt).sqrt()).to(x) * noise("step", state), state


def flow_grpo_sde(
    velocity: Velocity,
    x: Latents,
    t: RowTimes,
    t_next: RowTimes,
    state: State,
    noise: Noise,
    *,
    a: float = 0.7,
    t_max: float = 0.98,
) -> tuple[Latents, State]:
    """The SDE of Flow-GRPO (Liu et al. 2025, eq. 9): diffusion sigma = a sqrt(t / (1 - t)) with t
    clamped to `t_max`.

    Exact.
    """
    v, state = velocity(x, t, state)
    dt, clamped_t = t - t_next, t.clamp(max=t_max)
    sigma = a * (clamped_t / (1 - clamped_t)).sqrt()
    pull = broadcast(sigma**2 / (2 * t)).to(x) * noise_from_velocity(x, v, t.to(x))
    return (
        x - broadcast(dt).to(x) * (v + pull) + broadcast(sigma * dt.sqrt()).to(x) * noise("step", state),
        state,
    )


def glass(
    velocity: Velocity,
    x: Latents,
    t: RowTimes,
    t_next: RowTimes,
    state: State,
    noise: Noise,
    *,
    inner: int = 2,
) -> tuple[Latents, State]:
    """GLASS (2025, arXiv 2509.25170): the transition from t to t_next sampled by a flow of its own, `inner` steps.

    With alpha = 1 - t, sigma = t and DDPM's correlation rho = alpha_t sigma_s / (alpha_s sigma_t), the transition
    x_s = gamma x_t + y, gamma = rho sigma_s / sigma_t, leaves a Gaussian bridge y whose song is estimated by the
    network at an effective time, without training. Exact; `inner` evaluations.
    """
    a, b = t.to(torch.float64), t_next.to(torch.float64)
    rho = (1 - a) * b / ((1 - b) * a)
    gamma = rho * b / a
    mean, std = 1 - b - gamma * (1 - a), b * (1 - rho**2).sqrt()
    y = noise("step", state)
    for step in range(inner):
        s = step / inner
        mean_s, std_s = s * mean, (1 - s) + s * std
        precision = (1 - a) ** 2 / a**2 + mean_s**2 / std_s**2
        weighted_sum = broadcast((1 - a) / a**2).to(x) * x + broadcast(mean_s / std_s**2).to(x) * y
        t_effective = 1 / (1 + precision.sqrt())
        x_effective = broadcast((1 - t_effective) / precision.clamp(min=1e-12)).to(x) * weighted_sum
        x_effective = torch.where(broadcast(precision > 1e-12).to(x.device), x_effective, y)
        v, state = velocity(x_effective, t_effective, state)
        song = song_from_velocity(x_effective, v, t_effective.to(x))
        residual = broadcast((std - 1) / std_s).to(x) * (y - broadcast(mean_s).to(x) * song)
        y = y + (broadcast(mean).to(x) * song + residual) / inner
    return broadcast(gamma).to(x) * x + y, state


def cps(
    velocity: Velocity,
    x: Latents,
    t: RowTimes,
    t_next: RowTimes,
    state: State,
    noise: Noise,
    *,
    eta: float = 0.5,
) -> tuple[Latents, State]:
    """Flow-CPS (2025, arXiv 2509.05952): the predicted noise partly replaced by fresh noise, at constant size.

    x_s = (1 - s) song + s (cos(eta pi / 2) predicted noise + sin(eta pi / 2) noise). Not exact: songs vary less.
    """
    v, state = velocity(x, t, state)
    song, noise_estimate = song_from_velocity(x, v, t.to(x)), noise_from_velocity(x, v, t.to(x))
    angle = eta * math.pi / 2
    noise_mixture = math.cos(angle) * noise_estimate + math.sin(angle) * noise("step", state)
    return (1 - broadcast(t_next).to(x)) * song + broadcast(t_next).to(x) * noise_mixture, state


def overshoot(
    velocity: Velocity,
    x: Latents,
    t: RowTimes,
    t_next: RowTimes,
    state: State,
    noise: Noise,
    *,
    fraction: float = 0.3,
) -> tuple[Latents, State]:
    """Euler's step past t_next, to t_next (1 - fraction), and back by exact forward noise. Not exact."""
    v, state = velocity(x, t, state)
    t_end = t_next * (1 - fraction)
    x_end = x + broadcast(t_end - t).to(x) * v
    scale = (1 - t_next) / (1 - t_end)
    std = (t_next**2 - (scale * t_end) ** 2).clamp(min=0).sqrt()
    return broadcast(scale).to(x) * x_end + broadcast(std).to(x) * noise("step", state), state


def ping_pong(
    velocity: Velocity, x: Latents, t: RowTimes, t_next: RowTimes, state: State, noise: Noise
) -> tuple[Latents, State]:
    """The predicted song, noised anew to t_next: how consistency models are sampled (Song et al. 2023, alg. 1).

    Not exact for networks that are no consistency models.
    """
    v, state = velocity(x, t, state)
    song = song_from_velocity(x, v, t.to(x))
    return (1 - broadcast(t_next).to(x)) * song + broadcast(t_next).to(x) * noise("step", state), state
