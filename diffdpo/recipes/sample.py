"""The verb `sample`: prompts to songs as latents, FLAC and a row each; resumable by sample id, shardable."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from jaxtyping import Float
from omegaconf import MISSING
from torch import Tensor

from diffdpo.checks import check_range, check_seed
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.data import tables
from diffdpo.data.edits import Edit
from diffdpo.data.prompts import read_edits, read_prompts
from diffdpo.data.refresh import prompt_inputs, refresh_samples
from diffdpo.data.samples import PROMPTS, SAMPLES, SampleRow, Samples, sample_id, write_prompts
from diffdpo.data.song_prompts import SongPrompts
from diffdpo.errors import DataError
from diffdpo.faults import song_fault
from diffdpo.knob_parts import check_knobs, interventions_digest, load_interventions, resolve_knobs
from diffdpo.locks import is_alone
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model, check_model, check_search, model_digest
from diffdpo.progress import bar, log
from diffdpo.recipes.sample_results import conclude_samples
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, device, dist_env, open_run
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, SongRequest, compose, count_steps
from diffdpo.sampling.previews import previews
from diffdpo.sampling.sample_files import SampleDigests, sample_row, write_sample
from diffdpo.sampling.sample_jobs import (
    EmbeddedJob,
    SampleJob,
    check_jobs,
    embed_jobs,
    sample_jobs,
    song_request,
)
from diffdpo.sampling.variants import Interventions
from diffdpo.scorers.axes import check_axis_controls
from diffdpo.search.config import SearchConfig
from diffdpo.types import Prompt


@dataclass
class SampleRun:
    """Prompts to songs."""

    out: str = field(default=MISSING, metadata=PATH)
    prompts: str = field(default=MISSING, metadata=INPUT_FILE)
    """A prompts.jsonl, or a folder of `prepare`: the captions of its songs."""
    songs: SongPrompts = field(default_factory=SongPrompts)
    """Which captions of a folder of `prepare`, and how long the answers are."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    longform: LongformConfig = field(default_factory=LongformConfig)
    search: SearchConfig | None = None
    """With a search, the songs of a prompt are the best that it finds; all its songs are in OUT/search."""
    per_prompt: int = 1
    """Songs for each prompt, each with noise of its own; of a search the best."""
    seed: int = 0
    shard: int = 0
    shards: int = 1
    """Sample only every `shards`-th song, beginning with number `shard`: to split work over machines."""
    audio: bool = True
    """Decode and write FLAC; without, only latents are written."""
    embedding_cache: str = field(default="", metadata=PATH)
    """Folder that keeps embeddings of prompts between runs, by content, and mapped; else in memory."""

    def __post_init__(self) -> None:
        check_range(self, "per_prompt", "shards", low=1)
        check_range(self, "shard", low=0, below=self.shards)
        check_seed(self, "seed")
        if self.search is not None and (self.shards > 1 or not self.audio):
            raise ValueError(
                "search: takes audio=true and shards=1; `accelerate launch` shares it over processes"
            )

        if self.search is not None and self.per_prompt > self.search.budget:
            raise ValueError(
                f"search.budget={self.search.budget:g} is too small for the best per_prompt={self.per_prompt} songs"
            )

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        check_model(self.model)
        check_search(self.search, self.sampling)
        check_knobs(self.sampling)


def run(cfg: SampleRun, *, free: Sequence[str] = ()) -> Path:
    """Generate the songs that the folder does not hold yet, or holds for another prompt, edit or model.

    The keys in `free` may differ from those of an earlier run in the folder.
    """
    prompts, edits = read_prompts(cfg.prompts, cfg.songs), read_edits(cfg.prompts)
    check_axis_controls(prompts)
    inputs = prompt_inputs(prompts, edits, model_digest(cfg.model) + interventions_digest(cfg.sampling))
    songs = {sample_id(prompt.id, k): (prompt, k) for prompt in prompts for k in range(cfg.per_prompt)}
    dist = dist_env()
    folder = open_run(
        cfg,
        free=("sampling.batch", "shard", "shards", *free),
        dist=dist,
        shard=(cfg.shard, cfg.shards),
        refresh=partial(_refresh, cfg, songs, inputs, edits),
    )
    with folder as out:
        samples = Samples(out)
        if cfg.search is not None:
            winners = import_module("diffdpo.recipes.winners")
            conclude_samples(samples, winners.sample_winners(cfg, samples, dist), dist)
            return out
        complete_ids = {
            row.sample_id for row in samples.rows() if _complete(samples, row.sample_id, cfg.audio)
        }
        shard_ids = list(songs)[cfg.shard :: cfg.shards]
        if not complete_ids.issuperset(shard_ids):
            choice, sampling = resolve_knobs(cfg.model, cfg.sampling)
            model = build_model(choice)
            torch.nn.Module.to(model.network, device())
            jobs, faults = sample_jobs(model.spec, [songs[name] for name in shard_ids], edits)
            rows = [_row(cfg, job, inputs, error=reason) for job, reason in faults]
            if dist.main:
                tables.append(out, SAMPLES, rows, rank=cfg.shard)
            check_jobs(model, jobs, cfg.longform)
            with load_interventions(model, sampling, choice) as interventions:
                sampler = _Sampler(cfg, model, sampling, interventions, samples, inputs)
                _sample_all(sampler, dist.shard(jobs), complete_ids, dist)
        dist.barrier()
        conclude_samples(samples, list(songs), dist, shards=cfg.shards)
    return out


def _refresh(
    cfg: SampleRun,
    songs: Mapping[str, tuple[Prompt, int]],
    inputs: Mapping[str, str],
    edits: Mapping[str, Edit],
    out: Path,
) -> None:
    """Drop songs of an earlier run that were made from other inputs, then write the prompts of this run."""

    def check_alone() -> None:
        if not is_alone(out, cfg.shard, cfg.shards):
            raise DataError(
                f"{out}: prompts or model changed while other shards are at work here; wait until they have "
                "ended, or choose another out=…"
            )

    prompts = {name: prompt for name, (prompt, _) in songs.items()}
    refresh_samples(Samples(out), prompts, inputs, check_alone)
    write_prompts(out / PROMPTS, {prompt.id: prompt for prompt in prompts.values()}.values(), edits)


@dataclass(frozen=True, eq=False)
class _Sampler:
    """All that the songs of a run have in common."""

    cfg: SampleRun
    model: SongModel
    sampling: SamplingConfig
    """With the knobs that are left, see `resolve_knobs`."""
    interventions: Interventions
    samples: Samples
    inputs: Mapping[str, str]


def _sample_all(
    sampler: _Sampler, jobs: Sequence[SampleJob], complete_ids: Collection[str], dist: DistEnv
) -> None:
    """Generate the jobs that are not complete, in batches that do not depend on which are: a run that was stopped
    and continued has the batches of a run that was not."""
    cfg, model, inputs = sampler.cfg, sampler.model, sampler.inputs
    rank = cfg.shard + cfg.shards * dist.rank  # no two processes write the same part, whatever their number
    append = partial(tables.append, sampler.samples.folder, SAMPLES, rank=rank)
    size = cfg.sampling.batch
    full_batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    job_batches = [[job for job in batch if job.sample_id not in complete_ids] for batch in full_batches]
    store = EmbeddingStore(model, Path(cfg.embedding_cache) if cfg.embedding_cache else None)
    open_jobs = [job for batch in job_batches for job in batch]
    embedded_jobs, failures = embed_jobs(store, open_jobs, cfg.seed, sampler.sampling.axes)
    model.place("encoders", None)
    failed_jobs = [job for job in jobs if job.sample_id in failures]
    append([_row(cfg, job, inputs, error=failures[job.sample_id]) for job in failed_jobs])
    by_id = {embedded_job.job.sample_id: embedded_job for embedded_job in embedded_jobs}
    batches = [[by_id[job.sample_id] for job in batch if job.sample_id in by_id] for batch in job_batches]
    total = sum(
        count_steps(model.spec, [e.job.to_generate for e in batch], cfg.sampling, cfg.longform)
        for batch in filter(None, batches)
    )
    with bar("sample", total, "step", visible=dist.main) as progress:
        for batch in filter(None, batches):
            append(_sample_batch(sampler, batch, progress.advance))


def _sample_batch(
    sampler: _Sampler, batch: Sequence[EmbeddedJob], on_step: Callable[[], None]
) -> list[SampleRow]:
    """Generate and write the songs of a batch; a row each, with the error of a song that failed."""
    rows, requests = [], {}
    for embedded_job in batch:
        try:
            requests[embedded_job.job.sample_id] = song_request(sampler.model, embedded_job)
        except Exception as error:  # whatever one song brings about
            rows.append(_row(sampler.cfg, embedded_job.job, sampler.inputs, error=song_fault(error)))
    ready = [embedded_job for embedded_job in batch if embedded_job.job.sample_id in requests]
    try:
        return rows + _compose(sampler, ready, requests, on_step)
    except Exception as error:  # whatever one song brings about: the others are made without it
        reason = song_fault(error)
    if len(ready) == 1:
        return [*rows, _row(sampler.cfg, ready[0].job, sampler.inputs, error=reason)]
    log(f"a batch of {len(ready)} songs failed ({reason}); its songs are made one by one")
    for embedded_job in ready:
        rows += _sample_batch(sampler, [embedded_job], on_step)
    return rows


def _compose(
    sampler: _Sampler,
    ready: Sequence[EmbeddedJob],
    requests: Mapping[str, SongRequest],
    on_step: Callable[[], None],
) -> list[SampleRow]:
    """Generate and write the songs of some requests; a row each."""
    cfg, model, samples = sampler.cfg, sampler.model, sampler.samples
    with previews(model, samples, [e.job for e in ready] if cfg.audio else ()) as grow:
        songs = compose(
            model,
            list(requests.values()),
            sampler.sampling,
            cfg.longform,
            seed=cfg.seed,
            on_step=on_step,
            on_frames=grow,
            interventions=sampler.interventions,
        )
        return [
            _write(cfg, model, embedded_job, latents, samples, sampler.inputs)
            for embedded_job, latents in zip(ready, songs, strict=True)
        ]


def _write(
    cfg: SampleRun,
    model: SongModel,
    embedded_job: EmbeddedJob,
    latents: Float[Tensor, "frame channel"],
    samples: Samples,
    inputs: Mapping[str, str],
) -> SampleRow:
    """Write one song; its row, with the error if that failed."""
    try:
        digests = write_sample(model, samples, embedded_job, latents, audio=cfg.audio)
    except Exception as error:  # whatever one song brings about
        return _row(cfg, embedded_job.job, inputs, error=song_fault(error))
    return _row(cfg, embedded_job.job, inputs, digests=digests)


def _row(
    cfg: SampleRun,
    job: SampleJob,
    inputs: Mapping[str, str],
    *,
    digests: SampleDigests = SampleDigests(),  # noqa: B008 - frozen
    error: str = "",
) -> SampleRow:
    model = json.dumps({"name": cfg.model.name, **cfg.model.args}, sort_keys=True)
    return sample_row(
        job, cfg.sampling, cfg.longform, seed=cfg.seed, model=model, inputs=inputs[job.prompt.id],
        digests=digests, error=error,
    )  # fmt: skip


def _complete(samples: Samples, name: str, with_audio: bool) -> bool:
    return samples.latents(name).is_file() and (samples.audio(name).is_file() or not with_audio)
