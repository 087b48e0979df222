"""The verb `sample`: prompts to songs as latents, FLAC and a row each; resumable by sample id, shardable."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from omegaconf import MISSING

from diffdpo.checks import check_range, check_seed
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.data import tables
from diffdpo.data.edits import Edit
from diffdpo.data.prompts import read_edits, read_prompts
from diffdpo.data.refresh import prompt_inputs, refresh_samples
from diffdpo.data.samples import PROMPTS, SAMPLES, Samples, sample_id, write_prompts
from diffdpo.data.song_prompts import SongPrompts
from diffdpo.errors import DataError
from diffdpo.knob_parts import check_knobs, interventions_digest, resolve_knobs
from diffdpo.locks import is_alone
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_executor, build_model, check_model, check_search, model_digest
from diffdpo.progress import bar
from diffdpo.recipes.sample_results import conclude_samples
from diffdpo.recipes.sample_worker import SamplerFactory, song_row
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, check_alone_on, device, dist_env, open_run
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, count_steps
from diffdpo.sampling.sample_jobs import (
    SampleJob,
    check_jobs,
    embed_jobs,
    sample_jobs,
)
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
    executor: Choice = field(default_factory=lambda: Choice("local"))
    """Where songs are generated: local, in this process, or ray, on the actors of a Ray cluster."""

    def __post_init__(self) -> None:
        check_range(self, "per_prompt", "shards", low=1)
        check_range(self, "shard", low=0, below=self.shards)
        check_seed(self, "seed")
        if self.search is not None and (self.shards > 1 or not self.audio or self.executor.name != "local"):
            raise ValueError(
                "search: takes audio=true, shards=1 and executor=local; `accelerate launch` shares it over "
                "processes"
            )

        if self.search is not None and self.per_prompt > self.search.budget:
            raise ValueError(
                f"search.budget={self.search.budget:g} is too small for the best per_prompt={self.per_prompt} songs"
            )

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        check_model(self.model)
        build_executor(self.executor)
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
    check_alone_on(cfg.executor, dist)
    folder = open_run(
        cfg,
        free=("sampling.batch", "shard", "shards", "executor", *free),
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
            model = build_model(resolve_knobs(cfg.model, cfg.sampling)[0])
            torch.nn.Module.to(model.network, device())
            jobs, faults = sample_jobs(model.spec, [songs[name] for name in shard_ids], edits)
            rows = [song_row(cfg, job, inputs, error=reason) for job, reason in faults]
            if dist.main:
                tables.append(out, SAMPLES, rows, rank=cfg.shard)
            check_jobs(model, jobs, cfg.longform)
            _sample_all(cfg, model, dist.shard(jobs), inputs, complete_ids, dist)
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


def _sample_all(
    cfg: SampleRun,
    model: SongModel,
    jobs: Sequence[SampleJob],
    inputs: Mapping[str, str],
    complete_ids: Collection[str],
    dist: DistEnv,
) -> None:
    """Generate the jobs that are not complete, in batches that do not depend on which are: a run that was stopped
    and continued has the batches of a run that was not."""
    executor = build_executor(cfg.executor)
    rank = cfg.shard + cfg.shards * dist.rank  # no two processes write the same part, whatever their number
    append = partial(tables.append, Path(cfg.out), SAMPLES, rank=rank)
    size = cfg.sampling.batch
    full_batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    job_batches = [[job for job in batch if job.sample_id not in complete_ids] for batch in full_batches]
    store = EmbeddingStore(model, Path(cfg.embedding_cache) if cfg.embedding_cache else None)
    open_jobs = [job for batch in job_batches for job in batch]
    _, sampling = resolve_knobs(cfg.model, cfg.sampling)
    embedded_jobs, failures = embed_jobs(store, open_jobs, cfg.seed, sampling.axes)
    model.place("encoders", None)
    failed_jobs = [job for job in jobs if job.sample_id in failures]
    append([song_row(cfg, job, inputs, error=failures[job.sample_id]) for job in failed_jobs])
    by_id = {embedded_job.job.sample_id: embedded_job for embedded_job in embedded_jobs}
    batches = [[by_id[job.sample_id] for job in batch if job.sample_id in by_id] for batch in job_batches]
    batches = [batch for batch in batches if batch]
    steps = [
        count_steps(model.spec, [e.job.to_generate for e in batch], cfg.sampling, cfg.longform)
        for batch in batches
    ]
    with bar("sample", sum(steps), "step", visible=dist.main) as progress:
        factory = SamplerFactory(cfg, inputs, model, progress.advance)
        for number, rows in executor(batches, factory):
            append(rows)
            if not executor.in_process:
                progress.advance(steps[number])


def _complete(samples: Samples, name: str, with_audio: bool) -> bool:
    return samples.latents(name).is_file() and (samples.audio(name).is_file() or not with_audio)
