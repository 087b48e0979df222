"""Rectified flow on latents: t=0 is the song, t=1 is noise, the network predicts noise - song.

Latents are [batch, frame, channel] throughout. Times are one a song. References: Liu et al. 2022 (rectified
flow), Lipman et al. 2022 (flow matching), Esser et al. 2024 (logit-normal timesteps).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

Latents = Float[Tensor, "batch frame channel"]
Times = Float[Tensor, " batch"]
Grid = Float[Tensor, "grid batch"]
"""The times a solver visits, for each song; in fp64, since some networks count them from the other end."""
Velocity = Callable[[Latents, Times], Latents]


def _per_song(t: Times) -> Float[Tensor, "batch 1 1"]:
    return rearrange(t, "batch -> batch 1 1")


def interpolate(song: Latents, noise: Latents, t: Times) -> Latents:
    """x_t = (1 - t) song + t noise."""
    return (1 - _per_song(t)) * song + _per_song(t) * noise


def velocity(song: Latents, noise: Latents) -> Latents:
    """dx/dt along the straight path, the regression target: noise - song."""
    return noise - song


def song_from_velocity(x: Latents, v: Latents, t: Times) -> Latents:
    """The song that a velocity at (x, t) points back to: x - t v."""
    return x - _per_song(t) * v


def noise_from_velocity(x: Latents, v: Latents, t: Times) -> Latents:
    """The noise that a velocity at (x, t) points forward to: x + (1 - t) v."""
    return x + (1 - _per_song(t)) * v


def mask_from_frames(frames: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch {length}"]:
    """True where a frame exists, False in the padding behind the end of a song."""
    return torch.arange(length, device=frames.device) < frames[:, None]


def frame_errors(prediction: Latents, target: Latents) -> Float[Tensor, "batch frame"]:
    """Squared error averaged over channels, in at least fp32 whatever the forward's precision.

    Reducing in bf16 costs about half a logit at beta 2000; fp64 stays fp64.
    """
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return reduce((prediction.to(wide) - target.to(wide)) ** 2, "batch frame channel -> batch frame", "mean")


def masked_mean(
    values: Float[Tensor, "*batch frame"], mask: Bool[Tensor, "*batch frame"] | None
) -> Float[Tensor, "*batch"]:
    """Mean over the frames that exist; without a mask all do. The padding cannot matter, not even a NaN in it."""
    if mask is None:
        return values.mean(-1)
    return values.where(mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def weighted_mean(
    values: Float[Tensor, "*batch frame"], weights: Float[Tensor, "*batch frame"]
) -> Float[Tensor, "*batch"]:
    """Mean over frames under weights that sum to one. What stands where the weight is zero cannot matter."""
    return (values.where(weights > 0, 0) * weights.to(values.dtype)).sum(-1)


def span_weights(
    mask: Bool[Tensor, "*batch frame"],
    span: Bool[Tensor, "*#batch frame"] | None,
    share: float,
    dtype: torch.dtype,
) -> Float[Tensor, "*batch frame"]:
    """How much each frame counts: `share` is spread evenly over the span, the rest over all frames that exist.

    The weights of a song sum to one. A song without a span, or without a frame in it, counts as a whole.
    """
    whole = mask.to(dtype) / mask.sum(-1, keepdim=True).clamp(min=1)
    if span is None:
        return whole
    inside = mask & span
    count = inside.sum(-1, keepdim=True)
    local = torch.where(count > 0, inside.to(dtype) / count.clamp(min=1), whole)
    return (1 - share) * whole + share * local


def masked_square(
    difference: Float[Tensor, "*batch frame channel"],
    mask: Bool[Tensor, "*batch frame"] | None,
    weights: Float[Tensor, "*batch frame"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean square over all channels and the frames that exist, or over frames under weights, in at least fp32."""
    squares = (difference.to(torch.promote_types(difference.dtype, torch.float32)) ** 2).mean(-1)
    return masked_mean(squares, mask) if weights is None else weighted_mean(squares, weights)


def masked_error(
    prediction: Latents, target: Latents, mask: Bool[Tensor, "batch frame"]
) -> Float[Tensor, " batch"]:
    """Mean squared velocity error of each song, over its valid frames and all channels."""
    return masked_mean(frame_errors(prediction, target), mask)


@dataclass(frozen=True)
class Timesteps:
    """The density from which training times are drawn."""

    density: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    """Of the logit-normal, in logits of t: positive means more noise."""
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"timesteps.std must be positive, got {self.std}")

    def draw(self, generator: torch.Generator) -> Float[Tensor, ""]:
        """One time in (0, 1)."""
        if self.density == "uniform":
            return torch.rand((), generator=generator)
        return torch.sigmoid(self.mean + self.std * torch.randn((), generator=generator))


def schedule(steps: int, shift: float = 1.0, sway: float = 0.0) -> Float[Tensor, " grid"]:
    """The times from noise, 1, to the song, 0, in fp64: even steps, swayed, then shifted.

    `shift` s is that of SD3 (Esser et al. 2024, eq. 23), t -> s t / (s t + 1 - t): above 1 it spends more of the
    steps near the noise. `sway` is F5-TTS's (Chen et al. 2024), u -> u + sway (cos(pi u / 2) - 1 + u) in the time
    u = 1 - t: below 0 it likewise spends more near the noise.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    u = u + sway * (torch.cos(torch.pi / 2 * u) - 1 + u)
    t = (1 - u).clamp(0, 1)
    return shift * t / (shift * t + (1 - t))


Memory = tuple[Times, Latents] | None
"""When the solver last asked for a velocity, and what came of it; None at the start."""
Step = Callable[[Velocity, Latents, Times, Times, Memory], tuple[Latents, Memory]]
"""From x now to x then."""


def euler(
    velocity_at: Velocity, x: Latents, now: Times, then: Times, _before: Memory
) -> tuple[Latents, Memory]:
    """A straight step. Of first order."""
    v = velocity_at(x, now)
    return x + _per_song(then - now).to(x) * v, (now, v)


def midpoint(
    velocity_at: Velocity, x: Latents, now: Times, then: Times, _before: Memory
) -> tuple[Latents, Memory]:
    """The whole step with the velocity of its middle. Of second order, two evaluations."""
    middle = (now + then) / 2
    there = x + _per_song(middle - now).to(x) * velocity_at(x, now)
    v = velocity_at(there, middle)
    return x + _per_song(then - now).to(x) * v, (middle, v)


def adams_bashforth(
    velocity_at: Velocity, x: Latents, now: Times, then: Times, before: Memory
) -> tuple[Latents, Memory]:
    """The velocity goes on changing as it did over the last step. Of second order, one evaluation.

    With steps of varying width: x + h ((1 + h / 2g) v - (h / 2g) v_before), g the width of the last step.
    """
    v = velocity_at(x, now)
    change = torch.zeros_like(v)
    if before is not None:
        earlier, v_before = before
        change = _per_song((then - now) / (2 * (now - earlier))).to(x) * (v - v_before)
    return x + _per_song(then - now).to(x) * (v + change), (now, v)


def dpmpp_2m(
    velocity_at: Velocity, x: Latents, now: Times, then: Times, before: Memory
) -> tuple[Latents, Memory]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) for alpha = 1 - t, sigma = t. Of second order, one evaluation.

    The linear part is solved exactly and the predicted song D = x - t v extrapolated in the half log
    signal-to-noise ratio, l = log((1 - t) / t): x_s = (s / t) x_t + (1 - s / t) D with
    D = (1 + 1 / 2r) D_t - (1 / 2r) D_before, r = h_before / h. Where a step begins at noise or ends at a song
    l is infinite, and the step is one of Euler's.
    """
    v = velocity_at(x, now)
    song = song_from_velocity(x, v, now.to(x))
    ahead = song
    if before is not None:
        earlier, song_before = before
        l_then, l_now, l_earlier = (torch.logit(1 - s) for s in (then, now, earlier))
        half = (l_then - l_now) / (2 * (l_now - l_earlier))
        half = half.where(torch.isfinite(half), 0)
        ahead = song + _per_song(half).to(x) * (song - song_before)
    left = _per_song(then / now).to(x)
    return left * x + (1 - left) * ahead, (now, song)


@dataclass(frozen=True)
class Solver:
    """A way to follow the flow, and how often a step asks for the velocity."""

    step: Step
    evaluations: int = 1


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler),
    "midpoint": Solver(midpoint, 2),
    "adams_bashforth": Solver(adams_bashforth),
    "dpmpp_2m": Solver(dpmpp_2m),
}


def solve(
    velocity_at: Velocity,
    noise: Latents,
    times: Grid,
    solver: Solver,
    on_step: Callable[[int, Latents], None] | None = None,
) -> Latents:
    """Follow the flow from `noise` at times[0] to times[-1] (1 to 0 for a song)."""
    x, memory = noise, None
    for step, (now, then) in enumerate(pairwise(times)):
        x, memory = solver.step(velocity_at, x, now, then, memory)
        if on_step is not None:
            on_step(step, x)
    return x
