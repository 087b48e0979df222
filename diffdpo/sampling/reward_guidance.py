"""Reward-gradient guidance: a velocity that is bent towards a higher value of a small latent probe.

v' = v - (t / (1 - t)) grad log h(x_t), where h = E[exp(weight r(song)) | x_t]. The probe reads x_t itself, so no
gradient passes through the network, and a step costs no evaluation more. Taking log h for weight times the expected
reward ignores how uncertain the song still is and guides too far; `variance_correction` puts that right to second
order, exactly where latents are Gaussian and the reward quadratic.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.errors import CheckpointError
from diffdpo.flow import Latents, broadcast
from diffdpo.models.latent_probe import LatentProbe, ProbeCard, read_probe
from diffdpo.sampling.guidance import Mask, SongValues, dot
from diffdpo.sampling.trajectory import RowTimes, State, Velocity

NOISIEST = 1 - 1e-6
"""The highest t that is guided: at 1 the factor is infinite, and x says nothing of the song."""
LatentReward = Callable[[Latents, RowTimes, Mask], SongValues]
"""The expected reward of each song, given its latents at t."""


@dataclass(frozen=True)
class RewardGuidance:
    """Guidance of sampling by a probe of an axis."""

    probe: str = field(default="", metadata=PATH)
    """File of `diffdpo probe fit`."""
    weight: float = 1.0
    """Strength lambda: songs are weighed by exp(weight * axis in standard deviations). 0 is none; below 0 the axis
    falls."""
    interval: list[float] = field(default_factory=lambda: [0.0, 0.8])
    """Lowest and highest t that are guided. Near 1 a probe hears noise."""
    limit: float = 0.2
    """Largest norm of what is added to a song's velocity, as a share of the velocity's; 0: no limit."""
    variance_correction: bool = True
    """Weaken the guidance by how uncertain the song still is, see the module."""

    def __post_init__(self) -> None:
        prefix = "sampling.reward_guidance."
        check_range(self, "weight", prefix=prefix)
        check_range(self, "limit", low=0, prefix=prefix)
        interval = self.interval
        if not (len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1):
            raise ValueError(f"{prefix}interval must be two numbers, 0 <= low <= high <= 1, got {interval}")
        if self.weight and not self.probe:
            raise ValueError(f"{prefix}probe: name a file of `diffdpo probe fit`, or set weight=0")


def reward_guided_velocity(
    velocity: Velocity, reward: LatentReward, cfg: RewardGuidance, mask: Mask
) -> Velocity:
    """A velocity bent along the gradient of a reward. `mask` has a row for each sample. Gradients do not pass
    through what is added."""
    low, high = cfg.interval

    def guide(x: Latents, t: RowTimes, state: State) -> tuple[Latents, State]:
        v, state = velocity(x, t, state)
        index = ((t >= low) & (t <= min(high, NOISIEST)) & (t > 0)).nonzero().squeeze(1)
        if not len(index):
            return v, state
        rows, frames = index.to(x.device), mask[state["row"][index].to(mask.device)].to(x.device)
        push = reward_push(x[rows].detach(), t[index], frames, v[rows].detach(), reward, cfg)
        result = v.clone()
        result[rows] = v[rows] - push.to(v)
        return result, state

    return guide


def reward_push(
    x: Latents, t: RowTimes, mask: Mask, v: Latents, reward: LatentReward, cfg: RewardGuidance
) -> Latents:
    """(t / (1 - t)) grad log h of each song, zero behind its end, at most `limit` times as long as its velocity."""
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        leaf = x.to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
        values = reward(leaf, t, mask)
        (gradient,) = torch.autograd.grad(values.sum(), leaf, create_graph=cfg.variance_correction)
        weight = torch.full_like(values, cfg.weight)
        if cfg.variance_correction:
            weight = corrected_weight(cfg.weight, t.to(leaf), _curvature(gradient, leaf, mask))
    time = t.to(gradient)
    push = gradient.detach() * broadcast(weight.detach() * time / (1 - time))
    push = torch.where(mask[..., None], push, 0)
    if cfg.limit:
        length = dot(push, push, mask).sqrt().clamp(min=1e-12)
        push = push * broadcast((cfg.limit * dot(v, v, mask).sqrt() / length).clamp(max=1)).to(push)
    return push.nan_to_num(0.0, 0.0, 0.0)


def _curvature(gradient: Latents, x: Latents, mask: Mask) -> SongValues:
    """Minus the second derivative of the reward along its gradient, at least 0."""
    unit = gradient.detach()
    unit = unit / broadcast(dot(unit, unit, mask).sqrt().clamp(min=1e-12)).to(unit)
    if not gradient.requires_grad:  # a linear reward
        return dot(unit, torch.zeros_like(unit), mask)
    (product,) = torch.autograd.grad((gradient * unit).sum(), x, allow_unused=True)
    return -dot(unit, torch.zeros_like(unit) if product is None else product, mask).clamp(max=0)


def corrected_weight(weight: float, t: Float[Tensor, " row"], curvature: SongValues) -> SongValues:
    """The weight with the uncertainty of the song taken into account: lambda / (1 + lambda V k).

    For latents of unit variance the song given x_t has the mean (1 - t) x / D and the variance V = t² / D, with
    D = (1 - t)² + t²; a reward of the curvature k in the song has k (1 - t)² / D² in x_t, which is what
    `curvature` is. With a negative weight nothing is corrected: exp(weight r) need not have a mean.
    """
    spread = (1 - t) ** 2 + t**2
    product = weight * curvature * t**2 * spread / (1 - t) ** 2
    return weight / (1 + product.clamp(min=0))


def build_reward(cfg: RewardGuidance, channels: int, device: torch.device) -> LatentReward:
    """The reward of a probe in a file. CheckpointError for a file that is no probe, or is of other latents."""
    probe, card = load_probe(
        cfg.probe, Path(cfg.probe).stat().st_mtime_ns if Path(cfg.probe).is_file() else 0
    )
    if probe.channels != channels:
        raise CheckpointError(
            f"{cfg.probe}: a probe of {card.axis} in latents of {probe.channels} channels, this model's have "
            f"{channels}; fit one to its songs"
        )
    return probe.to(device)


@lru_cache(maxsize=4)
def load_probe(path: str, mtime_ns: int) -> tuple[LatentProbe, ProbeCard]:
    """The probe in a file, read once for each `mtime_ns` that it had."""
    return read_probe(Path(path))
