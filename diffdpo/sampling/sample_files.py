"""The files and the row of a generated song, in the layout that `sample` writes and all later verbs read."""

import json
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.latents import write_latents
from diffdpo.data.plans import write_plan
from diffdpo.data.samples import SampleRow, Samples
from diffdpo.errors import DataError
from diffdpo.models.base import SongModel
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.render import write_song
from diffdpo.sampling.sample_jobs import EmbeddedJob, SampleJob, song_audio


def write_sample(
    model: SongModel,
    samples: Samples,
    embedded_job: EmbeddedJob,
    latents: Float[Tensor, "frame channel"],
    *,
    audio: bool,
) -> str:
    """Write a song's audio, if wanted, its plan and its latents; the hash of the sound, "" without audio.

    DataError for latents that are not numbers.
    """
    job = embedded_job.job
    sha256 = ""
    if not torch.isfinite(latents).all():
        raise DataError("the sampled latents are not numbers")
    if audio:
        sound, gain = song_audio(model, job, latents)
        sha256 = write_song(sound, samples.audio(job.sample_id), at_gain=gain)
    if embedded_job.plan is not None:
        write_plan(samples.plan(job.sample_id), embedded_job.plan)
    write_latents(samples.latents(job.sample_id), latents)
    return sha256


def sample_row(
    job: SampleJob,
    sampling: SamplingConfig,
    longform: LongformConfig,
    *,
    seed: int,
    model: str,
    inputs: str,
    sha256: str = "",
    error: str = "",
) -> SampleRow:
    """A song's row in the samples table. `model` is JSON; `inputs` the digest of what the song is made from."""
    return SampleRow(
        sample_id=job.sample_id,
        prompt_id=job.prompt.id,
        group=job.prompt.group,
        seed=seed,
        frames=job.frames,
        duration_s=job.prompt.duration_s,
        model=model,
        sampling=json.dumps(asdict(sampling), sort_keys=True),
        longform=json.dumps(asdict(longform), sort_keys=True),
        edit=job.edit_json(),
        sha256=sha256,
        inputs=inputs,
        error=error,
    )
