"""From prompts and seeds to latents: the ODE from noise to song, with classifier-free guidance.

Noise belongs to the sample (seed, sample id), so a song does not depend on the batch it was made in, nor on the
number of processes; mixed lengths in one batch come out as they would alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
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
class Request:
    """One song to be made."""

    sample_id: str
    prompt: Prompt
    """Embedded."""


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
    lengths = [model.latents.frames(request.prompt.duration_s) for request in requests]
    longest = max(lengths)
    if longest > model.latents.max_frames:
        seconds = model.latents.max_frames / model.latents.frames_per_second
        worst = requests[lengths.index(longest)].prompt
        raise DataError(
            f"prompt {worst.id!r}: {worst.duration_s:g} s is longer than this model's {seconds:.0f} s; ask for less"
        )
    frames = torch.tensor(lengths)
    noise = draw_noise(seed, [r.sample_id for r in requests], longest, model.latents.channels)
    prompts = [request.prompt for request in requests]
    guided = _guided(model, prompts, frames, cfg, device)
    times = torch.linspace(1, 0, cfg.steps + 1, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        song = flow.euler(guided, noise.to(device), times, on_step=lambda *_: on_step and on_step())
    return [latents[:length].float().cpu() for latents, length in zip(song, lengths, strict=True)]


def _guided(
    model: SongModel,
    prompts: Sequence[Prompt],
    frames: Int[Tensor, " batch"],
    cfg: SamplingConfig,
    device: torch.device,
) -> flow.Velocity:
    """The velocity with guidance; both branches go through the network in one pass."""
    longest = int(frames.max())
    if cfg.guidance == 1:
        plain = _to(model.condition(prompts, longest), device)
        return lambda x, t: model.velocity(model.network, x, t, plain, frames)
    against = [model.embed(negative(prompt)) for prompt in prompts]
    both = _to(model.condition([*prompts, *against], longest), device)
    twice = frames.repeat(2)

    def velocity(x: flow.Latents, t: flow.Times) -> flow.Latents:
        v = model.velocity(model.network, x.repeat(2, 1, 1), t.repeat(2), both, twice)
        towards, away = v.chunk(2)
        return away + cfg.guidance * (towards - away)

    return velocity


def _to(condition: Condition, device: torch.device) -> Condition:
    return {name: tensor.to(device) for name, tensor in condition.items()}


def batches_of(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Requests in batches of similar length, so that little is padded; order within equals stays."""
    ordered = sorted(requests, key=lambda request: request.prompt.duration_s)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def embed_all(model: SongModel, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Every prompt embedded once, by id."""
    return {prompt.id: replace(model.embed(prompt), id=prompt.id) for prompt in prompts}
