"""The command `song`: one song of any length from a text, with a preview while it is generated."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from diffdpo.checks import check_range, check_seed
from diffdpo.errors import ConfigError
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model, model_choice
from diffdpo.progress import bar, log
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, SongRequest, compose, count_steps
from diffdpo.sampling.render import Preview, SongAudio, write_song
from diffdpo.sampling.request import plan_candidate, prompt_rows
from diffdpo.types import Prompt

OUTPUT_SUFFIXES = (".flac", ".wav")


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
    """Arguments of the model, each as key=value."""

    def __post_init__(self) -> None:
        check_range(self, "seconds", above=0)
        check_range(self, "steps", low=1)
        check_range(self, "guidance_scale", "window_s", low=0)
        check_range(self, "overlap_s", above=0)
        check_seed(self, "seed")


def write_one_song(text: str, out: Path, settings: SongSettings) -> Path:
    """Sample and write a song. OUT.preview.flac holds the first windows of a long song while it is generated."""
    if out.suffix not in OUTPUT_SUFFIXES:
        raise ConfigError(f"{out}: the file must end in {' or '.join(OUTPUT_SUFFIXES)}")
    try:
        cfg = SamplingConfig(steps=settings.steps, guidance_scale=settings.guidance_scale)
        longform = LongformConfig(
            method=settings.method, window_s=settings.window_s, overlap_s=settings.overlap_s
        )
        prompt = Prompt(id="song", text=text, duration_s=settings.seconds)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    model = build_model(model_choice(settings.model, settings.model_args))
    frames, store = model.spec.frames(settings.seconds), EmbeddingStore(model)
    _, plan = plan_candidate(store, prompt, "song", frames, settings.seed)
    row, _ = prompt_rows(prompt, frames, store.embed, plan)
    start_s, preview = time.monotonic(), Preview(out.with_suffix(f".preview{out.suffix}"))

    def grow(_: str, latents: torch.Tensor, complete_frames: int) -> None:
        first = not preview.frames
        if preview.frames or complete_frames < len(latents):
            preview.grow(SongAudio(model, latents), complete_frames)
        if first and preview.frames:
            log(f"{preview.path}: first sound after {time.monotonic() - start_s:.0f} s")

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
