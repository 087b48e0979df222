"""The beginnings of songs of several windows, to be heard while the rest is generated."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from diffdpo.data.samples import Samples
from diffdpo.faults import song_fault
from diffdpo.models.base import SongModel
from diffdpo.progress import log
from diffdpo.sampling.longform import OnFrames
from diffdpo.sampling.render import Preview, SongAudio
from diffdpo.sampling.sample_jobs import SampleJob


@contextmanager
def previews(model: SongModel, samples: Samples, jobs: Sequence[SampleJob]) -> Iterator[OnFrames]:
    """Previews of songs of several windows while they are generated; removed when the songs are complete."""
    files = {job.sample_id: Preview(samples.preview(job.sample_id)) for job in jobs}
    frames_before = {job.sample_id: job.frames_before(model.spec.frames_per_second) for job in jobs}

    def grow(name: str, latents: Float[Tensor, "frame channel"], complete_frames: int) -> None:
        preview = files.get(name)
        if preview is None or (complete_frames == len(latents) and not preview.frames):
            return
        try:
            preview.grow(SongAudio(model, latents, -frames_before[name]), complete_frames)
        except Exception as error:  # whatever one song brings about
            log(f"{name}: no preview: {song_fault(error)}")
            files.pop(name).remove()

    try:
        yield grow
    finally:
        for preview in files.values():
            preview.remove()
