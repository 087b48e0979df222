"""One song of any length from a text, to be heard while it is generated."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from diffdpo.errors import ConfigError
from diffdpo.parts import build_model
from diffdpo.progress import bar, say
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, SongRequest, compose, count_steps
from diffdpo.sampling.render import Preview, SongAudio, write_song
from diffdpo.types import Prompt, Row

SUFFIXES = (".flac", ".wav")


@dataclass(frozen=True, kw_only=True)
class SongSettings:
    """How the song is sampled, and by which model."""

    seconds: float = 30.0
    seed: int = 0
    steps: int = 12
    guidance_scale: float = 5.0
    window_s: float = 0.0
    overlap_s: float = 6.0
    method: Literal["continue", "joint"] = "continue"
    model: str = "tiny"
    model_args: tuple[str, ...] = ()
    """key=value each."""


def write_one_song(text: str, out: Path, settings: SongSettings) -> Path:
    """Sample and write a song. A song of several windows can be heard meanwhile in OUT.preview.flac."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out}: the file must end in {' or '.join(SUFFIXES)}")
    try:
        cfg = SamplingConfig(steps=settings.steps, guidance_scale=settings.guidance_scale)
        longform = LongformConfig(
            method=settings.method, window_s=settings.window_s, overlap_s=settings.overlap_s
        )
        prompt = Prompt(id="song", text=text, duration_s=settings.seconds)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    args = dict(word.split("=", 1) for word in settings.model_args if "=" in word)
    model = build_model(Choice(settings.model, args))
    row = Row(embedding=model.embed(prompt), frames=model.spec.frames(settings.seconds))
    began, preview = time.monotonic(), Preview(out.with_suffix(f".preview{out.suffix}"))

    def grow(_: str, latents: torch.Tensor, finished: int) -> None:
        first = not preview.frames
        if preview.frames or finished < len(latents):
            preview.grow(SongAudio(model, latents), finished)
        if first and preview.frames:
            say(f"{preview.path}: first sound after {time.monotonic() - began:.0f} s")

    total = count_steps(model.spec, [torch.ones(row.frames, dtype=torch.bool)], cfg, longform)
    try:
        with bar("sample", total, "step") as progress:
            (latents,) = compose(
                model,
                [SongRequest(sample_id="song", row=row)],
                cfg,
                longform,
                seed=settings.seed,
                on_step=progress.advance,
                on_frames=grow,
            )
        write_song(SongAudio(model, latents, seconds=settings.seconds), out)
    finally:
        preview.remove()
    return out
