"""Networks that predict noise or v, as velocities of the straight flow: an exact change of variables.

A variance-preserving network sees cos(a) song + sin(a) noise. The straight flow sees (1 - t) song + t noise,
the same signal-to-noise ratio at tan(a) = t / (1 - t), and differs by the factor r = sqrt((1 - t)² + t²) only.
So the network's input is x / r, and its prediction gives song and noise, whose difference is the velocity. No
trainer and no sampler has to know of it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.flow import Latents, broadcast


class VpPoint(NamedTuple):
    """A point of the straight flow as a variance-preserving network sees it."""

    x: Latents
    """cos(a) song + sin(a) noise."""
    angle: Float[Tensor, " batch"]
    """a in [0, pi / 2]: 0 is the song, pi / 2 noise."""


def vp_point(x: Latents, t: Float[Tensor, " batch"]) -> VpPoint:
    """The point of a variance-preserving diffusion with the signal-to-noise ratio of (x, t)."""
    return VpPoint(x / broadcast(torch.hypot(1 - t, t)).to(x), torch.atan2(t, 1 - t))


def velocity_from_v(point: VpPoint, v: Latents) -> Latents:
    """noise - song of a prediction v = cos(a) noise - sin(a) song (Salimans and Ho 2022)."""
    cos, sin = (broadcast(f(point.angle)).to(v) for f in (torch.cos, torch.sin))
    return (sin - cos) * point.x + (cos + sin) * v


def velocity_from_noise(point: VpPoint, noise: Latents) -> Latents:
    """noise - song of a prediction of the noise. Where nothing of the song is in x, at an angle of pi / 2,
    noise says nothing of it: clamp the angle to the noisiest of training."""
    cos, sin = (broadcast(f(point.angle)).to(noise) for f in (torch.cos, torch.sin))
    return noise - (point.x - sin * noise) / cos


def step_of_angle(angle: Float[Tensor, " batch"], signal: Float[Tensor, " step"]) -> Float[Tensor, " batch"]:
    """The step, between steps too, at which a discrete schedule has the signal-to-noise ratio of an angle.

    `signal` is cos² of each step, `alphas_cumprod` of diffusers, falling. Interpolated in the logarithm of the
    ratio; angles beyond the schedule are its ends.
    """
    ratios = torch.logit(signal.to(angle.device, torch.float64))
    value = torch.logit(torch.cos(angle.double()) ** 2).clamp(ratios[-1], ratios[0])
    above = torch.searchsorted(-ratios, -value).clamp(1, len(ratios) - 1)
    low, high = ratios[above - 1], ratios[above]
    return (above - 1 + (low - value) / (low - high)).to(angle)
