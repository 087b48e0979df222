"""How far a flow-matching model has moved from its reference: a KL divergence in nats a song.

Songs of both models are ends of one stochastic process run backwards: noise is added by one law, and removed by a
drift made of the velocity. By Girsanov's theorem the divergence of the two processes is an integral of the
squared difference of the velocities along the aligned model's own songs with noise,

    KL = ∫ (1 - t) / t  E |v_aligned - v_reference|² dt = ∫ (1 - t)² E |v_aligned - v_reference|² dl,

with l = log((1 - t) / t), half of the log signal-to-noise ratio. Of all noise levels of such a process this makes
the integral smallest. It is that of adding noise, so that for exact velocities the result is the divergence of the
songs themselves (Song et al. 2021, maximum likelihood training of score-based models). Under guidance, and for
songs of a solver of few steps, velocities are not those of the songs' law, and the number is a meter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.errors import DataError
from diffdpo.statistics import Interval, estimate_mean

VelocityField = Callable[[flow.Latents, float], flow.Latents]
"""The velocity of a batch of songs at (x, t), zero behind the end of each."""
VelocityGrid = Float[Tensor, "point song frame channel"]
"""Velocities of one model at every point of a grid."""
WINNER_TIMES = (0.1, 0.5, 0.9)
"""Times at which the errors of winners are measured."""


@dataclass(frozen=True)
class NoiseGrid:
    """Times at which velocities are compared: even steps in l from -reach to reach, t = 1 / (1 + exp(l)).

    The defaults are within 3 % of the divergence of normal laws with deviations of 0.2 to 3.
    """

    points: int = 6
    reach: float = 3.5
    """3.5: from t = 0.97 to 0.03."""

    def __post_init__(self) -> None:
        check_range(self, "points", low=1)
        check_range(self, "reach", above=0)

    @property
    def step(self) -> float:
        """The distance of two points in l."""
        return 2 * self.reach / self.points

    @property
    def times(self) -> tuple[float, ...]:
        """The middle of each step, from noise to song."""
        log_ratios = (torch.arange(self.points, dtype=torch.float64) + 0.5) * self.step - self.reach
        return tuple(torch.sigmoid(-log_ratios).tolist())


def noised_velocities(
    velocity: VelocityField, songs: flow.Latents, noise: flow.Latents, times: Sequence[float]
) -> VelocityGrid:
    """A model's velocities at songs with noise, one point a time, on the CPU in float32.

    Every second point has the negative of the noise, so that what is linear in it nearly cancels in a mean over
    points. Velocities of two models at the same songs, noise and times can be compared.
    """
    rows = []
    for place, t in enumerate(times):
        x = flow.interpolate(songs, noise_at(noise, place), torch.full((len(songs),), t, dtype=songs.dtype))
        rows.append(velocity(x, t).detach().float().cpu())
    return torch.stack(rows)


def noise_at(noise: flow.Latents, place: int) -> flow.Latents:
    """The noise of a point: negative at every second one."""
    return -noise if place % 2 else noise


def song_divergences(
    aligned: VelocityGrid, reference: VelocityGrid, grid: NoiseGrid
) -> Float[np.ndarray, " song"]:
    """The KL divergence of each song in nats, from the velocities of both models on the times of the grid."""
    squares = (aligned.double() - reference.double()).square().sum((2, 3))
    weights = (1 - torch.tensor(grid.times, dtype=torch.float64)) ** 2 * grid.step
    values: Float[np.ndarray, " song"] = (weights @ squares).numpy()
    return values


def mean_divergence(values: Float[np.ndarray, " song"], prompts: Sequence[str]) -> Interval:
    """The mean divergence with its interval over prompts. DataError for a value that is no number."""
    if not np.isfinite(values).all():
        raise DataError(
            "the velocities of a model are not finite numbers, so that its drift cannot be measured"
        )
    return estimate_mean(values, prompts).interval()


def song_errors(
    velocities: VelocityGrid,
    songs: flow.Latents,
    noise: flow.Latents,
    frames: Int[Tensor, " song"],
) -> Float[np.ndarray, " song"]:
    """The squared velocity error of each song, mean over frames, channels and the points of `noised_velocities`."""
    mask = flow.mask_from_frames(frames, songs.shape[1])
    errors = []
    for place, prediction in enumerate(velocities):
        target = flow.velocity(songs, noise_at(noise, place))
        errors.append(flow.masked_mean(flow.frame_errors(prediction, target), mask))
    values: Float[np.ndarray, " song"] = torch.stack(errors).mean(0).double().numpy()
    return values
