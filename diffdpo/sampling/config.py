"""Configuration of sampling."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError
from diffdpo.flow import LOG_SNR_END, LOG_SNR_START, log_snr_times
from diffdpo.models.base import LatentSpec
from diffdpo.registry import Choice
from diffdpo.sampling.guidance import Guidance, build_guider
from diffdpo.sampling.knobs import MODEL, Knob, used_networks, used_variants
from diffdpo.sampling.reward_guidance import RewardGuidance
from diffdpo.sampling.solver import Solver, build_solver
from diffdpo.sampling.steering_config import STEERING_KEY, SteeringConfig
from diffdpo.sampling.trajectory import schedule


@dataclass(frozen=True)
class LogSnrGrid:
    """A schedule of even steps in the logarithm of the signal-to-noise ratio. The defaults are Stable Audio 3's."""

    start: float = LOG_SNR_START
    """Near the noise, for a song of `anchor_frames`."""
    end: float = LOG_SNR_END
    """Near the song."""
    rate: float = 0.0
    """What is taken from `start` for each doubling of the length that the prompt asks for; published: 0."""
    anchor_frames: int = 2000

    def __post_init__(self) -> None:
        check_range(self, "start", prefix="sampling.log_snr.")
        check_range(self, "rate", low=0, prefix="sampling.log_snr.")
        check_range(self, "end", above=self.start, prefix="sampling.log_snr.")
        check_range(self, "anchor_frames", low=1, prefix="sampling.log_snr.")

    def times(self, steps: int, frames: int | None = None) -> Float[Tensor, " point"]:
        """The times of a song of so many frames, without its headroom."""
        doublings = 0.0 if frames is None else math.log2(frames / self.anchor_frames)
        return log_snr_times(steps, self.start - self.rate * doublings, self.end).double()


@dataclass(frozen=True)
class SamplingConfig:
    """Configuration of sampling: solver, schedule, guidance, approximations, precision and batch size."""

    steps: int = 12
    """Solver steps from noise to song."""
    solver: Choice = field(default_factory=lambda: Choice("adams_bashforth"))
    """adams_bashforth, dpmpp_2m (second order, one evaluation a step), midpoint (second order, two), euler (first
    order, as published with 31 steps); stochastic: sde, flow_grpo_sde, glass (exact), cps, overshoot, ping_pong."""
    shift: float = 1.0
    """Shift s of the schedule, t -> s t / (s t + 1 - t), as in SD3; above 1 more steps are spent near the noise."""
    sway: float = 0.0
    """Sway of the schedule in [-1, 1], as in F5-TTS; below 0 more steps are spent near the noise."""
    log_snr: LogSnrGrid | None = None
    """The schedule of Stable Audio 3, in the place of `shift` and `sway`."""
    guidance_scale: float = 5.0
    """Scale s of v = v_uncond + s (v_cond - v_uncond); 1 is no guidance and needs one pass an evaluation, not two.
    DiffRhythm's is 5."""
    guidance: Choice = field(default_factory=lambda: Choice("cfg"))
    """The guider: cfg, rescaled, zero_star, apg, or channel_apg (ACE-Step's)."""
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Lowest and highest t with guidance; elsewhere an evaluation is one pass."""
    guidance_every: int = 1
    """Evaluations for each unconditional velocity; between them the last guidance offset is used again."""
    cache_threshold: float = 0.0
    """Expected relative change of a song's velocity below which it is extrapolated, not computed; 0 computes all
    velocities."""
    reward_guidance: RewardGuidance | None = None
    """Guidance towards higher values of an axis by a probe of latents: docs/howto/reward-guidance.md."""
    knobs: list[Knob] = field(default_factory=list)
    """Differences of velocities that are added to the model's, each with a weight and an interval of t:
    docs/howto/knobs.md."""
    steering: list[SteeringConfig] = field(default_factory=list)
    """Directions that are added to activations, each with a strength, blocks and an interval of t:
    docs/howto/steering.md."""
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    """Compile the network's repeated blocks: a minute at the beginning."""
    batch: int = 8
    """Songs in one forward pass; changes nothing but memory and speed."""

    def __post_init__(self) -> None:
        check_range(self, "steps", "guidance_every", "batch", low=1, prefix="sampling.")
        check_range(self, "guidance_scale", "cache_threshold", low=0, prefix="sampling.")
        check_range(self, "shift", above=0, prefix="sampling.")
        check_range(self, "sway", low=-1, high=1, prefix="sampling.")
        interval = self.guidance_interval
        if self.log_snr is not None and (self.shift, self.sway) != (1.0, 0.0):
            raise ValueError(
                "sampling.log_snr is a schedule of its own; leave sampling.shift and sampling.sway out"
            )
        if not (len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1):
            raise ValueError(
                f"sampling.guidance_interval must be two numbers, 0 <= low <= high <= 1, got {interval}"
            )
        self._check_interventions()
        build_solver(self.solver)
        if self.build_guidance().guider.zero_init_steps >= self.steps:
            raise ValueError(
                f"sampling.guidance.args.zero_init_steps must be below sampling.steps={self.steps}"
            )

    def _check_interventions(self) -> None:
        if self.compile and any(key.skip for key in used_networks(self.active_knobs)):
            raise ValueError(
                "sampling.knobs: compiled blocks cannot be skipped; set sampling.compile=false, or leave skip out"
            )
        if self.compile and self.active_steering:
            raise ValueError(
                f"{STEERING_KEY}: compiled blocks cannot be steered; set sampling.compile=false, or leave it out"
            )
        if self.active_knobs and any(entry.monitor for entry in self.active_steering):
            raise ValueError(
                f"{STEERING_KEY}: the monitor watches one network, knobs evaluate several; leave sampling.knobs "
                "out, or set monitor=false"
            )

    def build_guidance(self) -> Guidance:
        """The guider, its scale and its interval."""
        low, high = self.guidance_interval
        return Guidance(self.guidance_scale, build_guider(self.guidance), low, high, self.guidance_every)

    def build_solver(self) -> Solver:
        """The solver with its arguments."""
        return build_solver(self.solver)

    @property
    def active_knobs(self) -> list[Knob]:
        """The knobs that change something."""
        return [knob for knob in self.knobs if knob.weight]

    @property
    def active_steering(self) -> list[SteeringConfig]:
        """The entries of steering that change something."""
        return [entry for entry in self.steering if entry.alpha]

    @property
    def has_interventions(self) -> bool:
        """Whether knobs, steering or guidance by a probe change the velocity of the model."""
        probe_weight = 0.0 if self.reward_guidance is None else self.reward_guidance.weight
        return bool(self.active_knobs or self.active_steering or probe_weight)

    @property
    def axes(self) -> tuple[str, ...]:
        """The preference axes of all variants, for which every prompt is embedded once more."""
        keys = used_variants(self.active_knobs) if self.active_knobs else [MODEL]
        return tuple(sorted({key.axis for key in keys} - {""}))

    @property
    def zero_init_steps(self) -> int:
        """Steps at the beginning over which the velocity is zero."""
        guidance = self.build_guidance()
        return guidance.guider.zero_init_steps if guidance.active else 0

    def times(self, spec: LatentSpec | None = None, frames: int | None = None) -> Float[Tensor, " point"]:
        """Times of the solver from 1, noise, to 0, the song, in fp64; the network's own for a few-step network.

        `frames` is the length of the song to be generated, with its headroom.
        """
        if spec is None or spec.times is None:
            if self.log_snr is not None:
                headroom = 0 if spec is None else spec.headroom
                return self.log_snr.times(self.steps, None if frames is None else max(1, frames - headroom))
            return schedule(self.steps, self.shift, self.sway)
        if self.steps != len(spec.times) - 1:
            raise ConfigError(
                f"this model knows {len(spec.times) - 1} steps only, sampling.steps is {self.steps}; "
                f"set sampling.steps={len(spec.times) - 1}"
            )
        return torch.tensor(spec.times, dtype=torch.float64)
