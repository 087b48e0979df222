"""Jobs of the verb `sample`: a prompt and a song number each, with embeddings, and the song to edit if any."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo import audio
from diffdpo.data.edits import LATENTS_SUFFIX, Edit, place_song, song_frames, to_generate
from diffdpo.data.latents import read_latents
from diffdpo.data.samples import sample_id
from diffdpo.errors import DataError
from diffdpo.faults import song_fault
from diffdpo.models.base import Covers, Inpaints, LatentSpec, SongModel, require, supports
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.sampling.longform import LongformConfig, SongRequest
from diffdpo.sampling.render import LOUDNESS_LUFS, SongAudio, song_gain
from diffdpo.sampling.request import InpaintContext, axis_rows, plan_candidate, prompt_rows
from diffdpo.types import Embedding, Plan, Prompt, Row


@dataclass(frozen=True)
class SampleJob:
    """One song to be generated."""

    sample_id: str
    prompt: Prompt
    """The prompt, with the duration of the song."""
    to_generate: Bool[Tensor, " frame"] = field(compare=False)
    """False on the frames that an edit keeps."""
    edit: Edit | None = None

    @property
    def frames(self) -> int:
        """Frames of the whole song."""
        return len(self.to_generate)

    def edit_json(self) -> str:
        """The edit for the samples table; empty for a song of its own."""
        return "" if self.edit is None else json.dumps(asdict(self.edit), sort_keys=True)

    def frames_before(self, frames_per_second: float) -> int:
        """Number of frames added before the edited song."""
        return int(self.edit.extend_start_s * frames_per_second) if self.edit else 0


@dataclass(frozen=True, eq=False)
class EmbeddedJob:
    """A job whose prompt, negative prompt and plan are embedded."""

    job: SampleJob
    row: Row
    negative: Row | None
    plan: Plan | None
    """The candidate's plan, for models that plan; stored with the candidate."""
    axis_rows: Mapping[str, Row] = field(default_factory=dict)
    """The row of the prompt with each preference axis that knobs name."""


def sample_jobs(
    spec: LatentSpec, prompt_numbers: Sequence[tuple[Prompt, int]], edits: Mapping[str, Edit]
) -> tuple[list[SampleJob], list[tuple[SampleJob, str]]]:
    """Jobs for prompts and song numbers, shortest first, so that batches hold songs of similar length.

    Besides, jobs without a frame for impossible edits, each with the reason.
    """
    jobs, faults = [], []
    for prompt, number in prompt_numbers:
        name, edit = sample_id(prompt.id, number), edits.get(prompt.id)
        if edit is None:
            mask = torch.ones(spec.frames(prompt.duration_s), dtype=torch.bool)
            jobs.append(SampleJob(name, prompt, mask))
            continue
        try:
            jobs.append(_edit_job(spec, name, prompt, edit))
        except Exception as error:  # whatever the song to be edited brings about
            faults.append((SampleJob(name, prompt, torch.ones(0, dtype=torch.bool), edit), song_fault(error)))
    return sorted(jobs, key=lambda job: job.frames), faults


def _edit_job(spec: LatentSpec, name: str, prompt: Prompt, edit: Edit) -> SampleJob:
    rate = spec.frames_per_second
    frames = song_frames(edit, prompt.id, channels=spec.channels, frames_per_second=rate)
    mask = to_generate(edit, prompt.id, frames=frames, frames_per_second=rate)
    return SampleJob(name, replace(prompt, duration_s=(len(mask) + 0.5) / rate), mask, edit)


def check_jobs(model: SongModel, jobs: Sequence[SampleJob], longform: LongformConfig) -> None:
    """DataError for the first song that needs a model that covers or in-paints, where this one does not."""
    if any(job.edit is not None and job.edit.cover for job in jobs):
        require(model, Covers)
    if supports(model, Inpaints):
        return
    window = longform.chunks(model.spec).size
    for job in jobs:
        if not job.to_generate.all():
            raise DataError(
                f"prompt {job.prompt.id!r}: its edit keeps a part of the song, and this model does not in-paint; "
                "choose another model, or vary the whole song with edit.strength alone"
            )
        if job.frames > window and longform.method == "continue":
            raise DataError(
                f"prompt {job.prompt.id!r}: {job.prompt.duration_s:g} s are longer than a window of "
                f"{window / model.spec.frames_per_second:g} s, and this model cannot continue songs; set "
                "longform.method=joint, or ask for less"
            )


def embed_jobs(
    store: EmbeddingStore, jobs: Sequence[SampleJob], seed: int, axes: Sequence[str] = ()
) -> tuple[list[EmbeddedJob], dict[str, str]]:
    """Embedded jobs, equal prompts embedded once, with each preference axis too; and the errors of the other jobs,
    by sample id."""
    embedded_jobs, failures = [], {}
    for job in jobs:
        try:
            embedded_jobs.append(embed_job(store, job, seed, axes))
        except Exception as error:  # whatever a prompt or its recording brings about
            failures[job.sample_id] = song_fault(error)
    return embedded_jobs, failures


def _cover(store: EmbeddingStore, edit: Edit) -> tuple[Plan | None, Embedding | None]:
    """The plan of a cover, read off the song that is covered, and its embedding."""
    model: Any = store.model
    plan = model.cover_plan(_edited_latents(model, edit))
    return plan, store.embed_plan(plan)


def embed_job(
    store: EmbeddingStore,
    job: SampleJob,
    seed: int,
    axes: Sequence[str] = (),
    source: Prompt | None = None,
    plan: Plan | None = None,
) -> EmbeddedJob:
    """A job whose song is made from `source`, by default from the job's own prompt. A model that plans makes a plan
    for the song, unless one is given."""
    prompt, embedding = source or job.prompt, None
    if plan is not None:
        embedding = store.embed_plan(plan)
    elif job.edit is not None and job.edit.cover:
        plan, embedding = _cover(store, job.edit)
    else:
        plan, embedding = plan_candidate(store, prompt, job.sample_id, job.frames, seed)
    row, negative = prompt_rows(prompt, job.frames, store.embed, embedding)
    rows_by_axis = axis_rows(prompt, axes, job.frames, store.embed, embedding)
    return EmbeddedJob(job=job, row=row, negative=negative, plan=plan, axis_rows=rows_by_axis)


def song_request(model: SongModel, embedded_job: EmbeddedJob) -> SongRequest:
    """The song that `compose` generates. Audio to be edited is brought to the level of `prepare` and encoded."""
    job = embedded_job.job
    if job.edit is None or (job.edit.cover and job.edit.strength == 1):
        return SongRequest(
            sample_id=job.sample_id,
            row=embedded_job.row,
            negative=embedded_job.negative,
            axis_rows=embedded_job.axis_rows,
        )
    latents = place_song(
        _edited_latents(model, job.edit),
        job.edit,
        length=job.frames,
        frames_per_second=model.spec.frames_per_second,
    )
    return SongRequest(
        sample_id=job.sample_id,
        row=embedded_job.row,
        negative=embedded_job.negative,
        context=InpaintContext(latents, ~job.to_generate),
        strength=job.edit.strength,
        axis_rows=embedded_job.axis_rows,
    )


def _edited_latents(model: SongModel, edit: Edit) -> Float[Tensor, "frame channel"]:
    if edit.song.endswith(LATENTS_SUFFIX):
        return read_latents(Path(edit.song))
    return model.encode(audio.normalise(audio.read(edit.song), LOUDNESS_LUFS))


def song_audio(
    model: SongModel, job: SampleJob, latents: Float[Tensor, "frame channel"]
) -> tuple[SongAudio, float | None]:
    """The audio of a job's latents, and its gain; None brings it to -16 LUFS.

    An edit of latents keeps its song's gain and place in time, so that what was not edited sounds as before.
    """
    if job.edit is None or job.edit.cover:
        return SongAudio(model, latents, seconds=job.prompt.duration_s), None
    sound = SongAudio(model, latents, -job.frames_before(model.spec.frames_per_second))
    if not job.edit.song.endswith(LATENTS_SUFFIX):
        return sound, None
    return sound, song_gain(SongAudio(model, read_latents(Path(job.edit.song))))
