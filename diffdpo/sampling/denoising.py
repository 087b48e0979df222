"""What a sampler repeats: from noise and conditions to latents, by solver, schedule and guidance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo import flow
from diffdpo.errors import DataError
from diffdpo.models.base import Condition, Prepares, SongModel
from diffdpo.registry import pick
from diffdpo.sampling.guidance import Guidance, Guided, Reused, Rows, build_form


@dataclass(frozen=True)
class SamplingConfig:
    """How songs are sampled."""

    steps: int = 12
    """Solver steps from noise to song."""
    solver: str = "adams_bashforth"
    """adams_bashforth, dpmpp_2m (second order, one evaluation a step); midpoint (second, two); euler (first), as
    published with 31 steps."""
    shift: float = 1.0
    """Above 1 more of the steps are spent near the noise: t -> s t / (s t + 1 - t), as in SD3."""
    sway: float = 0.0
    """In [-1, 1]; below 0 likewise, as in F5-TTS."""
    guidance: float = 5.0
    """Scale s of v = v_negative + s (v - v_negative); 1 is no guidance and needs one pass an evaluation, not
    two. DiffRhythm's is 5."""
    guidance_form: str = "plain"
    """plain, rescaled, zero_star or apg; see diffdpo/guidance.py."""
    guidance_args: dict[str, Any] = field(default_factory=dict)
    """Parameters of the form."""
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Guide only at t between these two; elsewhere one pass does."""
    guidance_every: int = 1
    """Compute the negative at every so many evaluations only, and reuse in between what guidance added."""
    reuse: float = 0.0
    """Extrapolate a song's velocity instead of computing it where it is expected to have changed by less than this
    share since it was last computed; 0 computes it always."""
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    """Compile the network's repeated blocks: a minute at the beginning."""
    batch: int = 8
    """Songs in one forward pass; changes nothing but memory and speed."""

    def __post_init__(self) -> None:
        for name in ("steps", "guidance_every", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("guidance", "reuse"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"sampling.{name} must be a number of at least 0, got {getattr(self, name)}")
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"sampling.shift must be a positive number, got {self.shift}")
        if not -1 <= self.sway <= 1:
            raise ValueError(f"sampling.sway must be in [-1, 1], got {self.sway}")
        interval = self.guidance_interval
        if not (len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1):
            raise ValueError(
                f"sampling.guidance_interval must be two numbers, 0 <= low <= high <= 1, got {interval}"
            )
        pick("sampling.solver", flow.SOLVERS, self.solver)
        if self.guides().form.held_steps >= self.steps:
            raise ValueError(f"sampling.guidance_args.held_steps must be below sampling.steps={self.steps}")

    def guides(self) -> Guidance:
        low, high = self.guidance_interval
        form = build_form(self.guidance_form, self.guidance_args)
        return Guidance(self.guidance, form, low, high, self.guidance_every)

    @property
    def held_steps(self) -> int:
        """Steps at the beginning over which nothing moves."""
        return self.guides().form.held_steps if self.guidance != 1 else 0

    def times(self) -> Float[Tensor, " grid"]:
        """From 1, noise, to 0, the song, in fp64."""
        return flow.schedule(self.steps, self.shift, self.sway)


@dataclass(frozen=True)
class Context:
    """A song of which a part is given: kept frames stand as they are, the others are made to fit them."""

    latents: Float[Tensor, "frame channel"]
    keep: Bool[Tensor, " frame"]
    """True where the song is given."""

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.keep):
            raise ValueError(f"a context of {len(self.latents)} frames cannot keep {len(self.keep)}")

    def paste(self, song: Float[Tensor, "frame channel"]) -> Float[Tensor, "frame channel"]:
        """The song with the kept frames over what was made of them."""
        return torch.where(self.keep[:, None], self.latents.to(song), song)


def show(condition: Condition, contexts: Sequence[Context | None]) -> Condition:
    """The condition with what is given of each song in its part `audio`, zero where it is to be made."""
    if not any(contexts):
        return condition
    if "audio" not in condition:
        raise DataError("this model knows no audio context; it can neither continue nor edit a song")
    shown = condition["audio"].clone()
    for row, context in enumerate(contexts):
        if context is not None:
            given = context.latents.where(context.keep[:, None], 0)
            shown[row, : len(given)] = given.to(shown)
    return {**condition, "audio": shown}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a batch of songs is asked to be. Songs asked the same share a row, which is then encoded once."""

    condition: Condition
    frames: Int[Tensor, " row"]
    """Valid frames of each row, on the CPU."""
    towards: Int[Tensor, " song"]
    """The row of each song."""
    away: Int[Tensor, " song"]
    """The row of each song's negative; not looked at without guidance."""


@torch.no_grad()
def velocity_of(model: SongModel, asked: Asked, cfg: SamplingConfig) -> Reused:
    """The guided velocity of a batch, a function of (x, t) that remembers its calls: a new one for each solve."""
    guidance = cfg.guides()
    if cfg.compile:
        compile_once(model.network)
    device = next(iter(asked.condition.values())).device
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        evaluate = _Network(model, asked, guided=guidance.scale != 1)
    mask = flow.mask_from_frames(asked.frames[asked.towards], int(asked.frames.max())).to(device)
    return Reused(Guided(evaluate, mask, guidance), cfg.reuse)


@torch.no_grad()
def follow(
    velocity: flow.Velocity,
    start: flow.Latents,
    times: flow.Grid,
    cfg: SamplingConfig,
    on_step: Callable[[int, flow.Latents], None] | None = None,
) -> flow.Latents:
    """From `start` at times[0] to times[-1]."""
    held = cfg.held_steps
    for step in range(held):  # noise stays noise while time goes on
        if on_step is not None:
            on_step(step, start)
    later = None if on_step is None else lambda step, x: on_step(held + step, x)
    with torch.autocast(start.device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        return flow.solve(velocity, start, times[held:], flow.SOLVERS[cfg.solver], later)


CPU_FRAMES = 2048
"""In one forward pass: with more, activations leave the cache of a CPU and it gets slower. No GPU is held back."""


class _Network:
    """Velocities of rows of [towards; away]. What x and t leave alone is computed once for a distinct ask."""

    def __init__(self, model: SongModel, asked: Asked, guided: bool) -> None:
        self.model, self.frames = model, asked.frames
        self.places = torch.cat([asked.towards, asked.away]) if guided else asked.towards
        self.condition = asked.condition
        if isinstance(model, Prepares):
            self.condition = model.prepare(model.network, asked.condition, asked.frames)
        self.all = self._rows(self.places)

    def __call__(self, x: flow.Latents, t: flow.Times, rows: Rows) -> flow.Latents:
        count, places = len(rows), self.places[rows]
        if torch.equal(rows, torch.arange(count)):
            condition = {name: tensor[:count] for name, tensor in self.all.items()}
        else:
            condition = self._rows(places)
        size = count if x.device.type != "cpu" else max(1, CPU_FRAMES // x.shape[1])
        made = []
        for first in range(0, count, size):
            part = slice(first, first + size)
            given = {name: tensor[part] for name, tensor in condition.items()}
            made.append(
                self.model.velocity(self.model.network, x[part], t[part], given, self.frames[places[part]])
            )
        return torch.cat(made)

    def _rows(self, places: Rows) -> Condition:
        if torch.equal(places, torch.arange(len(self.frames))):
            return self.condition
        return {name: tensor[places.to(tensor.device)] for name, tensor in self.condition.items()}


def compile_once(network: Any) -> None:
    """Compile the blocks that a network repeats, by diffusers' convention. Those compiled already stay."""
    repeated = getattr(network, "_repeated_blocks", None)
    if not repeated:
        raise DataError("sampling.compile: this model's network does not name its repeated blocks")
    blocks = [module for module in network.modules() if type(module).__name__ in repeated]
    for block in blocks:
        if getattr(block, "_compiled_call_impl", None) is None:
            block.compile(dynamic=True)
