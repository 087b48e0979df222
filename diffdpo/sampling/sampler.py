"""From prompts and seeds to latents: the ODE from noise to song, with classifier-free guidance.

Noise belongs to the sample (seed, sample id), so a song does not depend on the batch it was made in, nor on the
number of processes; mixed lengths in one batch come out as they would alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo import flow
from diffdpo.data.prompts import negative
from diffdpo.errors import DataError
from diffdpo.models.base import SongModel
from diffdpo.randomness import draw_noise
from diffdpo.sampling.denoising import Asked, Context, SamplingConfig, follow, show, velocity_of
from diffdpo.sampling.guidance import Guided, Reused
from diffdpo.types import Prompt


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
    pin: bool = False
    """Kept frames are facts: they go straight from noise to what they are, and the negative is shown them too, so
    that guidance is of the prompt alone. Else, as published, they go where the network takes them and are pasted in
    at the end, and guidance is of the context too."""


@dataclass(frozen=True)
class Made:
    """A song that was made."""

    latents: Float[Tensor, "frame channel"]
    """On the CPU in float32."""
    passes: int
    """Network passes it took, both branches of guidance counted."""


def sample(
    model: SongModel,
    requests: Sequence[Request],
    cfg: SamplingConfig,
    *,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> list[Float[Tensor, "_ channel"]]:
    """Latents of a batch of songs, each as long as its prompt asks, on the CPU in float32."""
    return [made.latents for made in make(model, requests, cfg, seed=seed, on_step=on_step)]


def make(
    model: SongModel,
    requests: Sequence[Request],
    cfg: SamplingConfig,
    *,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> list[Made]:
    """A batch of songs, each as long as its prompt asks, and what each took."""
    velocity = guided(model, requests, cfg)
    noise = draw(model, requests, seed, velocity.mask.shape[1])
    start, times = _start(requests, noise, cfg.times())
    pinned, start = _pinned(velocity, requests, noise), start.to(velocity.mask.device)
    songs = follow(pinned, start, times, cfg, lambda *_: on_step and on_step())
    made = []
    for request, song, passes in zip(requests, songs.float().cpu(), velocity.passes.tolist(), strict=True):
        latents = song[: model.latents.frames(request.prompt.duration_s)]
        made.append(Made(request.context.paste(latents) if request.context else latents, passes))
    return made


def guided(model: SongModel, requests: Sequence[Request], cfg: SamplingConfig) -> Reused:
    """The guided velocity of a batch of songs, padded to the longest; what all steps share is computed here."""
    device = next(model.network.parameters()).device
    lengths = [_length(model, request) for request in requests]
    return velocity_of(model, ask(model, requests, lengths, device), cfg)


def planned_passes(cfg: SamplingConfig) -> int:
    """Network passes a song takes under `cfg`, both branches of guidance counted, if `reuse` saves none."""
    velocity = Reused(Guided(lambda x, t, rows: x, torch.ones(1, 1, dtype=torch.bool), cfg.guides()), 0.0)
    follow(velocity, torch.zeros(1, 1, 1), cfg.times()[:, None], cfg)
    return int(velocity.passes)


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


def _pinned(velocity: flow.Velocity, requests: Sequence[Request], noise: flow.Latents) -> flow.Velocity:
    """The velocity, but noise - song where a request pins its kept frames: what they are at every t in training."""
    keep, straight = torch.zeros(noise.shape[:2], dtype=torch.bool), noise.clone()
    for row, request in enumerate(requests):
        if request.pin and request.context is not None:
            length = len(request.context.keep)
            keep[row, :length] = request.context.keep
            straight[row, :length] -= request.context.latents
    if not keep.any():
        return velocity
    return lambda x, t: torch.where(keep[..., None].to(x.device), straight.to(x), velocity(x, t))


def ask(model: SongModel, requests: Sequence[Request], lengths: Sequence[int], device: torch.device) -> Asked:
    """The conditions of a batch, one row for all songs of one prompt and context, one for equal negatives."""
    prompts: dict[object, tuple[Prompt, Context | None, int]] = {}
    towards = []
    for request, length in zip(requests, lengths, strict=True):
        key = (id(request.prompt), id(request.context))
        prompts.setdefault(key, (request.prompt, request.context, length))
        towards.append(list(prompts).index(key))
    away = []
    for request, length in zip(requests, lengths, strict=True):
        against = replace(
            negative(request.prompt), id="negative", negative_text=None, language=None, group="-"
        )
        seen = request.context if request.pin else None
        known = (against, id(seen))
        prompts.setdefault(known, (against, seen, length))
        away.append(list(prompts).index(known))
    rows = list(prompts.values())
    condition = model.condition([model.embed(prompt) for prompt, _, _ in rows], max(lengths))
    shown = show(condition, [context for _, context, _ in rows])
    return Asked(
        condition={name: tensor.to(device) for name, tensor in shown.items()},
        frames=torch.tensor([length for _, _, length in rows]),
        towards=torch.tensor(towards),
        away=torch.tensor(away),
    )


def batches_of(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Requests in batches of similar length, so that little is padded; order within equals stays."""
    ordered = sorted(requests, key=lambda request: request.prompt.duration_s)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def embed_all(model: SongModel, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Every prompt embedded once, by id."""
    return {prompt.id: replace(model.embed(prompt), id=prompt.id) for prompt in prompts}
