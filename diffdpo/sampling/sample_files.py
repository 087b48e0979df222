"""The files and the row of a generated song, in the layout that `sample` writes and all later verbs read."""

import json
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.latents import write_latents
from diffdpo.data.plans import plan_digest, write_plan
from diffdpo.data.samples import SampleRow, Samples
from diffdpo.errors import DataError
from diffdpo.models.base import SongModel
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.render import write_song
from diffdpo.sampling.sample_jobs import EmbeddedJob, SampleJob, song_audio


@dataclass(frozen=True)
class SampleDigests:
    """What identifies the files of a song; empty for a file that it has not."""

    sha256: str = ""
    """Hash of the sound."""
    plan: str = ""
    """Digest of the plan."""


def write_sample(
    model: SongModel,
    samples: Samples,
    embedded_job: EmbeddedJob,
    latents: Float[Tensor, "frame channel"],
    *,
    audio: bool,
) -> SampleDigests:
    """Write a song's audio, if wanted, its plan and its latents.

    DataError for latents that are not numbers.
    """
    job, plan, sha256 = embedded_job.job, embedded_job.plan, ""
    if not torch.isfinite(latents).all():
        raise DataError("the sampled latents are not numbers")
    if audio:
        sound, gain = song_audio(model, job, latents)
        sha256 = write_song(sound, samples.audio(job.sample_id), at_gain=gain)
    if plan is not None:
        write_plan(samples.plan(job.sample_id), plan)
    write_latents(samples.latents(job.sample_id), latents)
    return SampleDigests(sha256, plan_digest(plan) if plan is not None else "")


def sample_row(
    job: SampleJob,
    sampling: SamplingConfig,
    longform: LongformConfig,
    *,
    seed: int,
    model: str,
    inputs: str,
    digests: SampleDigests = SampleDigests(),
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
        sha256=digests.sha256,
        plan=digests.plan,
        inputs=inputs,
        error=error,
    )
