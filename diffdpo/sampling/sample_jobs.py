"""What `sample` has to do: a prompt and a number each, embedded, with the song it edits if it edits one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo import audio
from diffdpo.data.edits import LATENTS, Edit, placed, song_frames, to_be_made
from diffdpo.data.latents import read_latents
from diffdpo.data.samples import sample_id
from diffdpo.errors import UserError
from diffdpo.models.base import LatentSpec, SongModel
from diffdpo.sampling.denoising import Context
from diffdpo.sampling.longform import Song
from diffdpo.sampling.render import LOUDNESS_LUFS, Sound, gain
from diffdpo.types import Prompt


@dataclass(frozen=True)
class Job:
    """One song to be made."""

    sample_id: str
    prompt: Prompt
    """As long as the song will be."""
    missing: Bool[Tensor, " frame"] = field(compare=False)
    edit: Edit | None = None

    def described_edit(self) -> str:
        """JSON for the table; empty for a song of its own."""
        return "" if self.edit is None else json.dumps(asdict(self.edit), sort_keys=True)

    def frames_before(self, frames_per_second: float) -> int:
        """What is put before the song that is edited."""
        return int(self.edit.extend_start_s * frames_per_second) if self.edit else 0


def plan_jobs(spec: LatentSpec, wanted: Sequence[tuple[Prompt, int]], edits: Mapping[str, Edit]) -> list[Job]:
    """Jobs, shortest first, so that batches hold songs of similar length. DataError for an edit that cannot be."""
    rate, jobs = spec.frames_per_second, []
    for prompt, number in wanted:
        edit = edits.get(prompt.id)
        if edit is None:
            missing = torch.ones(spec.frames(prompt.duration_s), dtype=torch.bool)
        else:
            frames = song_frames(edit, prompt.id, channels=spec.channels, frames_per_second=rate)
            missing = to_be_made(edit, prompt.id, frames=frames, frames_per_second=rate)
            prompt = replace(prompt, duration_s=(len(missing) + 0.5) / rate)
        jobs.append(Job(sample_id(prompt.id, number), prompt, missing, edit))
    return sorted(jobs, key=lambda job: len(job.missing))


def embedded(model: SongModel, jobs: Sequence[Job]) -> tuple[list[Job], dict[str, str]]:
    """The jobs with their prompts embedded, each prompt once; of those that cannot be, the reason by sample id."""
    done: dict[str, Prompt | str] = {}
    ready, failed = [], {}
    for job in jobs:
        if job.prompt.id not in done:
            try:
                done[job.prompt.id] = model.embed(job.prompt)
            except UserError as error:
                done[job.prompt.id] = str(error)
        prompt = done[job.prompt.id]
        if isinstance(prompt, str):
            failed[job.sample_id] = prompt
        else:
            ready.append(replace(job, prompt=prompt))
    return ready, failed


def song_of(model: SongModel, job: Job) -> Song:
    """The song that `compose` is asked for. Audio to be edited is brought to the level of `prepare` and encoded."""
    if job.edit is None:
        return Song(job.sample_id, job.prompt)
    given = placed(
        _source(model, job.edit),
        job.edit,
        length=len(job.missing),
        frames_per_second=model.latents.frames_per_second,
    )
    return Song(job.sample_id, job.prompt, Context(given, ~job.missing), job.edit.strength)


def _source(model: SongModel, edit: Edit) -> Float[Tensor, "frame channel"]:
    if edit.song.endswith(LATENTS):
        return read_latents(Path(edit.song))
    return model.encode(audio.normalise(audio.read(edit.song), LOUDNESS_LUFS))


def sound_of(
    model: SongModel, job: Job, latents: Float[Tensor, "frame channel"]
) -> tuple[Sound, float | None]:
    """How a job's latents are heard, and at which gain, None for the usual level.

    An edit of latents keeps its song's gain and place in time, so that what was not edited sounds as before.
    """
    if job.edit is None:
        return Sound(model, latents), None
    sound = Sound(model, latents, -job.frames_before(model.latents.frames_per_second))
    if not job.edit.song.endswith(LATENTS):
        return sound, None
    return sound, gain(Sound(model, read_latents(Path(job.edit.song))))
