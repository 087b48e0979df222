"""The path of a sample from noise to song: its times, its state, and the loop of steps along it.

A step is a function (velocity, x, t, t_next, state, noise) -> (x, state). `velocity(x, t, state)` gives the
velocity and the next state. All memory, that of multistep solvers too, is in `state`: named tensors with a
leading row axis, so that rows can be copied, dropped and reordered between steps. `noise(purpose, state)` is
a function of the sample and the step alone. Nothing here forbids gradients.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.flow import Latents

RowTimes = Float[Tensor, " row"]
TimeGrid = Float[Tensor, "point sample"]
"""The times visited, for each sample, from noise to song; in fp64, since some networks count from the other end."""
ResampledLatents = Float[Tensor, "_ frame channel"]
"""Latents after a hook, which may drop, copy and reorder rows."""
State = dict[str, Tensor]
"""Named tensors, each with a leading row axis. `row` is the sample that a row belongs to."""
Velocity = Callable[[Latents, RowTimes, State], tuple[Latents, State]]
Noise = Callable[[str, State], Latents]
Step = Callable[..., tuple[Latents, State]]
Hook = Callable[[int, Latents, RowTimes, State], tuple[ResampledLatents, State]]
"""Called after a step with its number, x, the time and the state; returns the x and state of the next step."""


def schedule(steps: int, shift: float = 1.0, sway: float = 0.0) -> Float[Tensor, " point"]:
    """The times from noise, 1, to the song, 0, in fp64: even steps, swayed, then shifted.

    `shift` s is that of SD3 (Esser et al. 2024, eq. 23), t -> s t / (s t + 1 - t): above 1 it spends more of the
    steps near the noise. `sway` is F5-TTS's (Chen et al. 2024), u -> u + sway (cos(pi u / 2) - 1 + u) in the time
    u = 1 - t: below 0 it likewise spends more near the noise.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    u = u + sway * (torch.cos(torch.pi / 2 * u) - 1 + u)
    t = (1 - u).clamp(0, 1)
    return shift * t / (shift * t + (1 - t))


def solve(
    velocity: Velocity,
    x: Latents,
    times: TimeGrid,
    step: Step,
    state: State,
    noise: Callable[[int], Noise],
    hook: Hook | None = None,
) -> tuple[ResampledLatents, State]:
    """Follow `times` from x at times[0] to times[-1] (1 to 0 for a song). `noise(i)` is the noise of step i."""
    for i, (t, t_next) in enumerate(pairwise(times)):
        sample = state["row"]
        x, state = step(velocity, x, t[sample], t_next[sample], state, noise(i))
        if hook is not None:
            x, state = hook(i, x, t_next[state["row"]], state)
    return x, state
