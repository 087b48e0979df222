"""Classifier-free guidance: how the velocities with and without the prompt become one.

A guider is a frozen dataclass whose fields are its parameters and whose call is a pure function. All statistics
belong to one song and its valid frames, so a song depends neither on its batch nor on its padding (the guiders of
diffusers take them over everything but the batch, padding included).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.flow import Latents
from diffdpo.registry import Choice, Table, bind, pick
from diffdpo.sampling.trajectory import RowTimes

SongValues = Float[Tensor, " row"]
Mask = Bool[Tensor, "row frame"]
Memory = Float[Tensor, "memory_row frame channel"]
"""The state of a guider after its last call, a row for each song; no rows where the guider is not stateful."""


class Branches(NamedTuple):
    """The velocities of both branches of guidance at (x, t), and the frames that exist."""

    cond: Latents
    """The velocity for the prompt."""
    uncond: Latents
    """The velocity for the negative prompt, or without a prompt."""
    x: Latents
    t: RowTimes
    mask: Mask
    """True on the frames that exist."""


@runtime_checkable
class Guider(Protocol):
    """A rule that combines both branches at a guidance scale s, of which 1 is no guidance."""

    @property
    def zero_init_steps(self) -> int:
        """Steps at the beginning over which the velocity is taken to be zero."""

    @property
    def stateful(self) -> bool:
        """Whether `memory` is used; memory is zero before the first call."""

    def __call__(self, branches: Branches, scale: float, memory: Memory) -> tuple[Latents, Memory]:
        """The guided velocity, and the memory for the next call on the same songs."""


def dot(a: Latents, b: Latents, mask: Mask) -> SongValues:
    """The inner product of each song's valid frames, in at least fp32."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) * b.to(dtype)).sum(-1).where(mask, 0).sum(-1)


def _broadcast(values: SongValues) -> Float[Tensor, "row 1 1"]:
    return rearrange(values, "row -> row 1 1")


def _standard_deviation(v: Latents, mask: Mask) -> SongValues:
    """Standard deviation of each song over its valid frames and channels."""
    count = mask.sum(-1) * v.shape[-1]
    deviations = v - _broadcast(dot(v, torch.ones_like(v), mask) / count).to(v)
    return (dot(deviations, deviations, mask) / (count - 1).clamp(min=1)).sqrt()


@dataclass(frozen=True)
class CFG:
    """v = uncond + s (cond - uncond): classifier-free guidance (Ho and Salimans 2022)."""

    zero_init_steps: ClassVar[int] = 0
    stateful: ClassVar[bool] = False

    def __call__(self, branches: Branches, scale: float, memory: Memory) -> tuple[Latents, Memory]:
        return branches.uncond + scale * (branches.cond - branches.uncond), memory


@dataclass(frozen=True)
class RescaledCFG:
    """CFG, rescaled towards the standard deviation of the prompt's velocity (Lin et al. 2023, section 3.4)."""

    rescale: float = 0.7
    """0 is plain CFG, 1 has the standard deviation of the prompt's velocity."""
    zero_init_steps: ClassVar[int] = 0
    stateful: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range(self, "rescale", low=0, high=1)

    def __call__(self, branches: Branches, scale: float, memory: Memory) -> tuple[Latents, Memory]:
        v, _ = CFG()(branches, scale, memory)
        ratio = _standard_deviation(branches.cond, branches.mask) / _standard_deviation(
            v, branches.mask
        ).clamp(min=1e-8)
        return v * _broadcast(1 + self.rescale * (ratio - 1)).to(v), memory


@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero* (Fan et al. 2025): the unconditional velocity at its best scale, and zero over the first steps.

    a = <cond, uncond> / |uncond|^2;  v = a uncond + s (cond - a uncond).
    """

    zero_init_steps: int = 1
    """Steps at the beginning over which the velocity is zero; the paper takes 4 % of them."""
    stateful: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.zero_init_steps >= 0 and self.zero_init_steps == int(self.zero_init_steps)):
            raise ValueError(
                f"zero_init_steps must be a whole number of at least 0, got {self.zero_init_steps}"
            )

    def __call__(self, branches: Branches, scale: float, memory: Memory) -> tuple[Latents, Memory]:
        best = dot(branches.cond, branches.uncond, branches.mask) / dot(
            branches.uncond, branches.uncond, branches.mask
        ).clamp(min=1e-8)
        uncond = branches.uncond * _broadcast(best).to(branches.uncond)
        return uncond + scale * (branches.cond - uncond), memory


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1), on the predicted songs D = x - t v.

    The difference of the two songs, with momentum, its size limited, is split into its projection on the prompt's
    song, which saturates, and the rest, which is orthogonal: D = D_cond + (s - 1) (rest + parallel * projection).
    """

    parallel: float = 0.0
    """Share of the projection that is added; 1 adds all of it."""
    limit: float = 0.0
    """Largest root mean square of the difference over a song's frames and channels; 0 is no limit. The paper's
    radius r is limit * sqrt(frames * channels): here songs differ in length."""
    momentum: float = 0.0
    """Share of the last differences that is added; the paper takes -0.5."""
    zero_init_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_range(self, "limit", "parallel", low=0)
        check_range(self, "momentum", above=-1, below=1)

    @property
    def stateful(self) -> bool:
        """Whether there is momentum."""
        return self.momentum != 0

    def __call__(self, branches: Branches, scale: float, memory: Memory) -> tuple[Latents, Memory]:
        t = _broadcast(branches.t).to(branches.x)
        song = branches.x - t * branches.cond
        difference = t * (branches.uncond - branches.cond)
        if self.stateful:
            difference = memory = difference + self.momentum * memory
        if self.limit:
            count = branches.mask.sum(-1) * song.shape[-1]
            size = (dot(difference, difference, branches.mask) / count).sqrt().clamp(min=1e-8)
            difference = difference * _broadcast((self.limit / size).clamp(max=1)).to(song)
        share = dot(difference, song, branches.mask) / dot(song, song, branches.mask).clamp(min=1e-8)
        projection = song * _broadcast(share).to(song)
        update = difference - projection + self.parallel * projection
        return branches.cond - (scale - 1) * update / t, memory


@dataclass(frozen=True)
class ChannelAPG:
    """Adaptive projected guidance as ACE-Step 1.5 has it: on the velocities, each channel over time by itself.

    The difference cond - uncond, with momentum, its size limited, without its projection on the prompt's velocity:
    v = cond + (s - 1) (rest + parallel * projection).
    """

    parallel: float = 0.0
    """Share of the projection that is added."""
    limit: float = 2.5
    """Largest Euclidean norm of a channel of the difference over a song's frames; 0 is no limit."""
    momentum: float = -0.75
    """Share of the last differences that is added."""
    zero_init_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_range(self, "limit", "parallel", low=0)
        check_range(self, "momentum", above=-1, below=1)

    @property
    def stateful(self) -> bool:
        """Whether there is momentum."""
        return self.momentum != 0

    def __call__(self, branches: Branches, scale: float, memory: Memory) -> tuple[Latents, Memory]:
        dtype = torch.promote_types(branches.cond.dtype, torch.float32)
        difference = branches.cond - branches.uncond
        if self.stateful:
            difference = memory = difference + self.momentum * memory
        difference, cond = (
            v.to(dtype).masked_fill(~branches.mask[..., None], 0) for v in (difference, branches.cond)
        )
        if self.limit:
            size = difference.norm(dim=1, keepdim=True).clamp(min=1e-8)
            difference = difference * (self.limit / size).clamp(max=1)
        direction = cond / cond.norm(dim=1, keepdim=True).clamp(min=1e-12)
        projection = (difference * direction).sum(1, keepdim=True) * direction
        update = difference - projection + self.parallel * projection
        return branches.cond + (scale - 1) * update.to(branches.cond), memory


GUIDERS: Table[type[Guider]] = Table(
    "guider",
    {
        "cfg": CFG,
        "rescaled": RescaledCFG,
        "zero_star": ZeroStar,
        "apg": APG,
        "channel_apg": ChannelAPG,
    },
)


def build_guider(choice: Choice) -> Guider:
    """A guider by name; ConfigError or ValueError for an unknown name or argument, or a value out of range."""
    return bind("guider", pick("guider", GUIDERS, choice.name), choice)()


@dataclass(frozen=True)
class Guidance:
    """The scale, the guider, and when the unconditional branch is computed."""

    scale: float
    guider: Guider
    low: float = 0.0
    high: float = 1.0
    """Guided only at t in [low, high] (Kynkäänniemi et al. 2024); elsewhere the prompt's branch is enough."""
    every: int = 1
    """Evaluations for each unconditional velocity; between them the last guidance offset is used again."""

    @property
    def active(self) -> bool:
        """Whether there is any guidance."""
        return self.scale != 1
