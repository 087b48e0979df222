"""Solver steps along the flow, and the table of all solvers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from diffdpo.checks import check_number
from diffdpo.flow import Latents, broadcast, song_from_velocity
from diffdpo.registry import Choice, Table, bind, pick
from diffdpo.sampling import stochastic
from diffdpo.sampling.trajectory import Noise, RowTimes, State, Step, Velocity


def euler(
    velocity: Velocity, x: Latents, t: RowTimes, t_next: RowTimes, state: State, noise: Noise
) -> tuple[Latents, State]:
    """Euler's step. First order."""
    v, state = velocity(x, t, state)
    return x + broadcast(t_next - t).to(x) * v, state


def midpoint(
    velocity: Velocity, x: Latents, t: RowTimes, t_next: RowTimes, state: State, noise: Noise
) -> tuple[Latents, State]:
    """The whole step with the velocity at its midpoint. Second order, two evaluations."""
    middle = (t + t_next) / 2
    v, state = velocity(x, t, state)
    v, state = velocity(x + broadcast(middle - t).to(x) * v, middle, state)
    return x + broadcast(t_next - t).to(x) * v, state


def adams_bashforth(
    velocity: Velocity, x: Latents, t: RowTimes, t_next: RowTimes, state: State, noise: Noise
) -> tuple[Latents, State]:
    """Linear extrapolation of the velocity from the last step. Second order, one evaluation.

    With steps of varying width: x + h ((1 + h / 2g) v - (h / 2g) v_last), g the width of the last step.
    """
    v, state = velocity(x, t, state)
    slope = torch.zeros_like(v)
    if "solver.v" in state:
        t_last, v_last = state["solver.t"], state["solver.v"]
        slope = broadcast((t_next - t) / (2 * (t - t_last))).to(x) * (v - v_last)
    return x + broadcast(t_next - t).to(x) * (v + slope), state | {"solver.t": t, "solver.v": v}


def dpmpp_2m(
    velocity: Velocity, x: Latents, t: RowTimes, t_next: RowTimes, state: State, noise: Noise
) -> tuple[Latents, State]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) for alpha = 1 - t, sigma = t. Second order, one evaluation.

    The linear part is solved exactly and the predicted song D = x - t v extrapolated in the half log
    signal-to-noise ratio, l = log((1 - t) / t): x_s = (s / t) x_t + (1 - s / t) D with
    D = (1 + 1 / 2r) D_t - (1 / 2r) D_last, r = h_last / h. Where a step begins at noise or ends at a song l is
    infinite, and the step is Euler's.
    """
    v, state = velocity(x, t, state)
    song = song_from_velocity(x, v, t.to(x))
    song_extrapolation = song
    if "solver.song" in state:
        t_last, song_last = state["solver.t"], state["solver.song"]
        l_next, l_now, l_last = (torch.logit(1 - s) for s in (t_next, t, t_last))
        half = (l_next - l_now) / (2 * (l_now - l_last))
        half = half.where(torch.isfinite(half), 0)
        song_extrapolation = song + broadcast(half).to(x) * (song - song_last)
    ratio = broadcast(t_next / t).to(x)
    return ratio * x + (1 - ratio) * song_extrapolation, state | {"solver.t": t, "solver.song": song}


@dataclass(frozen=True)
class Solver:
    """A solver step with its number of evaluations and its properties."""

    step: Step
    evaluations: int = 1
    """Velocities that a step computes."""
    evaluations_key: str = ""
    """Name of the step's argument that sets `evaluations`, if any."""
    stochastic: bool = False
    exact: bool = True
    """Whether the marginal distributions of the flow are preserved as the number of steps grows."""

    def __call__(self, *inputs: Any) -> tuple[Latents, State]:
        return self.step(*inputs)


SOLVERS: Table[Solver] = Table(
    "solver",
    {
        "euler": Solver(euler),
        "midpoint": Solver(midpoint, evaluations=2),
        "adams_bashforth": Solver(adams_bashforth),
        "dpmpp_2m": Solver(dpmpp_2m),
        "sde": Solver(stochastic.sde, stochastic=True),
        "flow_grpo_sde": Solver(stochastic.flow_grpo_sde, stochastic=True),
        "glass": Solver(stochastic.glass, evaluations=2, evaluations_key="inner", stochastic=True),
        "cps": Solver(stochastic.cps, stochastic=True, exact=False),
        "overshoot": Solver(stochastic.overshoot, stochastic=True, exact=False),
        "ping_pong": Solver(stochastic.ping_pong, stochastic=True, exact=False),
    },
)


RANGES: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("sde", "eta"): {"low": 0},
    ("flow_grpo_sde", "a"): {"low": 0},
    ("flow_grpo_sde", "t_max"): {"above": 0, "below": 1},
    ("cps", "eta"): {"low": 0, "high": 1},
    ("overshoot", "fraction"): {"low": 0, "high": 1},
}
"""The range of each argument of a solver's step, as `check_number` takes it."""


def build_solver(choice: Choice) -> Solver:
    """A solver by name with the arguments of its step; ConfigError or ValueError for an unknown or bad one."""
    solver = pick("solver", SOLVERS, choice.name)
    step = bind("solver", solver.step, choice)
    for name, value in choice.args.items():
        check_number(value, f"{name} of solver {choice.name!r}", **RANGES.get((choice.name, name), {}))
    evaluations = choice.args.get(solver.evaluations_key, solver.evaluations)
    if evaluations != int(evaluations) or evaluations < 1:
        raise ValueError(
            f"{solver.evaluations_key} of solver {choice.name!r} must be a whole number of at least 1, "
            f"got {evaluations}"
        )
    return Solver(
        step=step,
        evaluations=evaluations,
        stochastic=solver.stochastic,
        exact=solver.exact,
    )


def exact_solvers() -> list[str]:
    """Names of the stochastic solvers that preserve the marginal distributions."""
    return [name for name, solver in SOLVERS.items() if solver.stochastic and solver.exact]
