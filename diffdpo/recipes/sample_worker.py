"""The worker of the verb `sample`: batches of songs to files and rows, in this process or in another one."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.samples import SampleRow, Samples
from diffdpo.faults import song_fault
from diffdpo.knob_parts import load_interventions, resolve_knobs
from diffdpo.models.base import SongModel
from diffdpo.parts import build_model
from diffdpo.progress import log
from diffdpo.run_dir import device
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import SongRequest, compose
from diffdpo.sampling.previews import previews
from diffdpo.sampling.sample_files import SampleDigests, sample_row, write_sample
from diffdpo.sampling.sample_jobs import EmbeddedJob, SampleJob, song_request
from diffdpo.sampling.variants import Interventions
from diffdpo.threads import parallel_map

if TYPE_CHECKING:
    from diffdpo.recipes.sample import SampleRun


def _ignore_step() -> None:
    pass


@dataclass(frozen=True, eq=False)
class SamplerFactory:
    """Makes the worker of a run: a function from a batch of embedded jobs to their rows, which writes their files.

    The model of this process and its progress stay behind when the factory is pickled: another process loads a
    model of its own.
    """

    cfg: "SampleRun"
    inputs: Mapping[str, str]
    model: SongModel | None = None
    on_step: Callable[[], None] = _ignore_step

    @contextmanager
    def __call__(self) -> Iterator[Callable[[Sequence[EmbeddedJob]], list[SampleRow]]]:
        choice, sampling = resolve_knobs(self.cfg.model, self.cfg.sampling)
        model = self.model
        if model is None:
            model = build_model(choice)
            torch.nn.Module.to(model.network, device())
            model.place("encoders", None)
        with load_interventions(model, sampling, choice) as interventions:
            samples = Samples(Path(self.cfg.out))
            sampler = _Sampler(self.cfg, model, sampling, interventions, samples, self.inputs, self.on_step)
            yield sampler.sample_batch

    def __reduce__(self) -> tuple[Any, ...]:
        return SamplerFactory, (self.cfg, self.inputs)


@dataclass(frozen=True, eq=False)
class _Sampler:
    """All that the songs of a run have in common."""

    cfg: "SampleRun"
    model: SongModel
    sampling: SamplingConfig
    """With the knobs that are left, see `resolve_knobs`."""
    interventions: Interventions
    samples: Samples
    inputs: Mapping[str, str]
    on_step: Callable[[], None]

    def sample_batch(self, batch: Sequence[EmbeddedJob]) -> list[SampleRow]:
        """Generate and write the songs of a batch; a row each, with the error of a song that failed."""
        rows, requests = [], {}
        for embedded_job in batch:
            try:
                requests[embedded_job.job.sample_id] = song_request(self.model, embedded_job)
            except Exception as error:  # whatever one song brings about
                rows.append(song_row(self.cfg, embedded_job.job, self.inputs, error=song_fault(error)))
        ready = [embedded_job for embedded_job in batch if embedded_job.job.sample_id in requests]
        try:
            return rows + self._compose(ready, requests)
        except Exception as error:  # whatever one song brings about: the others are made without it
            reason = song_fault(error)
        if len(ready) == 1:
            return [*rows, song_row(self.cfg, ready[0].job, self.inputs, error=reason)]
        log(f"a batch of {len(ready)} songs failed ({reason}); its songs are made one by one")
        for embedded_job in ready:
            rows += self.sample_batch([embedded_job])
        return rows

    def _compose(self, ready: Sequence[EmbeddedJob], requests: Mapping[str, SongRequest]) -> list[SampleRow]:
        """Generate and write the songs of some requests; a row each."""
        jobs = [embedded_job.job for embedded_job in ready] if self.cfg.audio else ()
        with previews(self.model, self.samples, jobs) as grow:
            songs = compose(
                self.model,
                list(requests.values()),
                self.sampling,
                self.cfg.longform,
                seed=self.cfg.seed,
                on_step=self.on_step,
                on_frames=grow,
                interventions=self.interventions,
            )
            return self._write_all(ready, songs)

    def _write_all(
        self, ready: Sequence[EmbeddedJob], songs: Sequence[Float[Tensor, "frame channel"]]
    ) -> list[SampleRow]:
        """Write some songs; a row each.

        On a CPU several are decoded side by side, each on one core; the first alone, since it may load a codec.
        """
        if device().type != "cpu":
            return [self._write(job, latents) for job, latents in zip(ready, songs, strict=True)]
        return [
            row
            for part in (slice(0, 1), slice(1, None))
            for row in parallel_map(self._write, ready[part], songs[part])
        ]

    @torch.no_grad()
    def _write(self, embedded_job: EmbeddedJob, latents: Float[Tensor, "frame channel"]) -> SampleRow:
        """Write one song; its row, with the error if that failed."""
        try:
            digests = write_sample(self.model, self.samples, embedded_job, latents, audio=self.cfg.audio)
        except Exception as error:  # whatever one song brings about
            return song_row(self.cfg, embedded_job.job, self.inputs, error=song_fault(error))
        return song_row(self.cfg, embedded_job.job, self.inputs, digests=digests)


def song_row(
    cfg: "SampleRun",
    job: SampleJob,
    inputs: Mapping[str, str],
    *,
    digests: SampleDigests = SampleDigests(),  # noqa: B008 - frozen
    error: str = "",
) -> SampleRow:
    """The row of a song of a run, with the error of one that failed."""
    model = json.dumps({"name": cfg.model.name, **cfg.model.args}, sort_keys=True)
    return sample_row(
        job, cfg.sampling, cfg.longform, seed=cfg.seed, model=model, inputs=inputs[job.prompt.id],
        digests=digests, error=error,
    )  # fmt: skip
