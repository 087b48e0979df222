"""From prompts and seeds to latents: the ODE from noise to song, with classifier-free guidance.

Noise belongs to the sample (seed, sample id), so a song does not depend on the batch it was made in, nor on the
number of processes; mixed lengths in one batch come out as they would alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo import flow
from diffdpo.data.prompts import negative
from diffdpo.errors import DataError
from diffdpo.models.base import Condition, SongModel
from diffdpo.randomness import draw_noise
from diffdpo.types import Prompt


@dataclass(frozen=True)
class SamplingConfig:
    """How songs are sampled."""

    steps: int = 32
    """Euler steps from noise to song."""
    guidance: float = 3.0
    """Scale s of v = v_negative + s (v - v_negative); 1 is no guidance and needs one pass a step, not two."""
    precision: Literal["no", "bf16"] = "no"
    batch: int = 8
    """Songs in one forward pass; changes nothing but memory and speed."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be at least 1, got {getattr(self, name)}")
        if not (self.guidance >= 0 and self.guidance < float("inf")):
            raise ValueError(f"sampling.guidance must be a number of at least 0, got {self.guidance}")


@dataclass(frozen=True)
class Context:
    """A song of which a part is given: kept frames stand as they are, the others are made to fit them."""

    latents: Float[Tensor, "frame channel"]
    keep: Bool[Tensor, " frame"]
    """True where the song is given."""

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.keep):
            raise ValueError(f"a context of {len(self.latents)} frames cannot keep {len(self.keep)}")


@dataclass(frozen=True)
class Origin:
    """A song to vary (SDEdit, Meng et al. 2022): sampling begins on the way to it, at t = strength."""

    latents: Float[Tensor, "frame channel"]
    strength: float
    """In (0, 1]: near 0 the song stays, at 1 nothing of it is left."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {self.strength}")


@dataclass(frozen=True)
class Request:
    """One song to be made."""

    sample_id: str
    prompt: Prompt
    """Embedded."""
    context: Context | None = field(default=None, compare=False)
    origin: Origin | None = field(default=None, compare=False)
    first_frame: int = 0
    """Where this request begins in a longer song: windows of one sample id share the noise of shared frames."""


@torch.no_grad()
def sample(
    model: SongModel,
    requests: Sequence[Request],
    cfg: SamplingConfig,
    *,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> list[Float[Tensor, "_ channel"]]:
    """Latents of a batch of songs, each as long as its prompt asks, on the CPU in float32."""
    device = next(model.network.parameters()).device
    frames = torch.tensor([_length(model, request) for request in requests])
    noise = draw(model, requests, seed, int(frames.max()))
    start, times = _start(requests, noise, torch.linspace(1, 0, cfg.steps + 1, dtype=torch.float64))
    guided = _guided(model, requests, frames, cfg, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        songs = flow.euler(guided, start.to(device), times, on_step=lambda *_: on_step and on_step())
    return [_finish(r, song[:n].float().cpu()) for r, song, n in zip(requests, songs, frames, strict=True)]


def _length(model: SongModel, request: Request) -> int:
    """Frames of a request; DataError for what the model cannot make or what does not fit."""
    prompt, length = request.prompt, model.latents.frames(request.prompt.duration_s)
    if length > model.latents.max_frames:
        seconds = model.latents.max_frames / model.latents.frames_per_second
        raise DataError(
            f"prompt {prompt.id!r}: {prompt.duration_s:g} s is longer than this model's {seconds:.0f} s; "
            "ask for less"
        )
    for name, given in (("context", request.context), ("origin", request.origin)):
        if given is not None and given.latents.shape != (length, model.latents.channels):
            shape = tuple(given.latents.shape)
            raise DataError(
                f"sample {request.sample_id!r}: its {name} is {shape} [frame, channel], the song will be "
                f"{(length, model.latents.channels)}; cut or pad it to the prompt's duration_s"
            )
    return length


def draw(model: SongModel, requests: Sequence[Request], seed: int, length: int) -> flow.Latents:
    """The noise each song begins with, by seed and sample id; that of windows is cut from their song's."""
    channels = model.latents.channels
    return torch.cat(
        [
            draw_noise(seed, [r.sample_id], r.first_frame + length, channels)[:, r.first_frame :]
            for r in requests
        ]
    )


def _start(
    requests: Sequence[Request], noise: flow.Latents, grid: Float[Tensor, " grid"]
) -> tuple[flow.Latents, flow.Grid]:
    """Where each song begins, and its times: a variation takes as many steps over a shorter way."""
    origins = [request.origin for request in requests]
    strength = torch.tensor(
        [1.0 if origin is None else origin.strength for origin in origins], dtype=torch.float64
    )
    song = torch.zeros_like(noise)
    for row, origin in zip(song, origins, strict=True):
        if origin is not None:
            row[: len(origin.latents)] = origin.latents
    return flow.interpolate(song, noise, strength.float()), grid[:, None] * strength


def _finish(request: Request, song: Float[Tensor, "frame channel"]) -> Float[Tensor, "frame channel"]:
    """Kept frames are pasted over what was made of them."""
    context = request.context
    return song if context is None else torch.where(context.keep[:, None], context.latents.float(), song)


def _guided(
    model: SongModel,
    requests: Sequence[Request],
    frames: Int[Tensor, " batch"],
    cfg: SamplingConfig,
    device: torch.device,
) -> flow.Velocity:
    """The velocity with guidance; both branches go through the network in one pass."""
    prompts = [request.prompt for request in requests]
    towards = _condition(model, requests, prompts, int(frames.max()))
    if cfg.guidance == 1:
        plain = _to(towards, device)
        return lambda x, t: model.velocity(model.network, x, t, plain, frames)
    against = [model.embed(negative(prompt)) for prompt in prompts]
    away = model.condition(against, int(frames.max()))
    both = _to({name: torch.cat([towards[name], away[name]]) for name in towards}, device)
    twice = frames.repeat(2)

    def velocity(x: flow.Latents, t: flow.Times) -> flow.Latents:
        v = model.velocity(model.network, x.repeat(2, 1, 1), t.repeat(2), both, twice)
        towards, away = v.chunk(2)
        return away + cfg.guidance * (towards - away)

    return velocity


def _condition(
    model: SongModel, requests: Sequence[Request], prompts: Sequence[Prompt], length: int
) -> Condition:
    """The prompts' condition, with what is given of the songs in its part `audio`, zero where it is made."""
    condition = model.condition(prompts, length)
    contexts = [request.context for request in requests]
    if any(contexts) and "audio" not in condition:
        raise DataError("this model knows no audio context; it can neither continue nor edit a song")
    for row, context in enumerate(contexts):
        if context is not None:
            given = context.latents.where(context.keep[:, None], 0)
            condition["audio"][row, : len(given)] = given.to(condition["audio"].dtype)
    return condition


def _to(condition: Condition, device: torch.device) -> Condition:
    return {name: tensor.to(device) for name, tensor in condition.items()}


def batches_of(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Requests in batches of similar length, so that little is padded; order within equals stays."""
    ordered = sorted(requests, key=lambda request: request.prompt.duration_s)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def embed_all(model: SongModel, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Every prompt embedded once, by id."""
    return {prompt.id: replace(model.embed(prompt), id=prompt.id) for prompt in prompts}
