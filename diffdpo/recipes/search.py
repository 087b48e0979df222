"""The verb `search`: the best songs of each prompt by a reward, at a cost; every search can be mined."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from omegaconf import MISSING

from diffdpo.checks import check_seed
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.data import tables
from diffdpo.data.edits import Edit
from diffdpo.data.prompts import read_edits, read_prompts
from diffdpo.data.refresh import prompt_inputs, refresh_samples
from diffdpo.data.samples import PROMPTS, SAMPLES, SampleRow, Samples, write_prompts
from diffdpo.data.song_prompts import SongPrompts
from diffdpo.errors import DataError
from diffdpo.faults import song_fault
from diffdpo.knob_parts import check_knobs, interventions_digest, load_interventions, resolve_knobs
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import (
    build_method,
    build_model,
    build_scorers,
    check_model,
    check_search,
    model_digest,
)
from diffdpo.progress import Bar, bar, log
from diffdpo.recipes import score
from diffdpo.recipes.score import ScoreRun
from diffdpo.recipes.search_results import report_gains, write_page
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, device, dist_env, open_run
from diffdpo.runs import finish
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.sample_files import SampleDigests, sample_row
from diffdpo.sampling.sample_jobs import EmbeddedJob, SampleJob, check_jobs, sample_jobs
from diffdpo.sampling.variants import Interventions
from diffdpo.scorers.axes import check_axis_controls, judge_axes
from diffdpo.scorers.base import Scorer
from diffdpo.search.config import SearchConfig
from diffdpo.search.engine import SearchResult, search_prompt
from diffdpo.search.store import SEARCH, FolderStore, ranked_rows
from diffdpo.search.task import GroupedMethod, SearchMethod, SearchTask
from diffdpo.types import Prompt


@dataclass
class SearchRun:
    """The best songs of each prompt."""

    out: str = field(default=MISSING, metadata=PATH)
    """A samples folder of all songs of the search; its scores are in `scores`."""
    prompts: str = field(default=MISSING, metadata=INPUT_FILE)
    """A prompts.jsonl, or a folder of `prepare`: the captions of its songs."""
    songs: SongPrompts = field(default_factory=SongPrompts)
    """Which captions of a folder of `prepare`, and how long the answers are."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    longform: LongformConfig = field(default_factory=LongformConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    scores: str = field(default="", metadata=PATH)
    """Folder of the scores table, which other runs may share; by default OUT/scores."""
    seed: int = 0
    embedding_cache: str = field(default="", metadata=PATH)
    """Folder that keeps embeddings of prompts between runs, by content, and mapped; else in memory."""

    def __post_init__(self) -> None:
        check_seed(self, "seed")

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        check_model(self.model)
        check_search(self.search, self.sampling)
        check_knobs(self.sampling)

    @property
    def scores_folder(self) -> Path:
        """Where the values are."""
        return Path(self.scores) if self.scores else Path(self.out) / "scores"


def run(cfg: SearchRun, *, free: Sequence[str] = ()) -> Path:
    """Search for the songs of the prompts whose search is not complete. The keys in `free` may differ from those of
    an earlier run in the folder."""
    prompts, edits = read_prompts(cfg.prompts, cfg.songs), read_edits(cfg.prompts)
    check_axis_controls(prompts)
    method = build_method(cfg.search.method)
    inputs = prompt_inputs(prompts, edits, model_digest(cfg.model) + interventions_digest(cfg.sampling))
    dist = dist_env()
    free_keys = [f"search.method.args.{name}" for name in getattr(method, "free_arguments", ())]
    free_keys += [] if getattr(method, "joint", False) else ["search.budget"]
    keys = ("sampling.batch", "search.winners", "scores", *free_keys, *free)
    with open_run(cfg, free=keys, dist=dist, refresh=partial(_refresh, cfg, prompts, inputs, edits)) as out:
        if dist.main:
            _warn(cfg, prompts, dist)
        choice, sampling = resolve_knobs(cfg.model, cfg.sampling)
        model = build_model(choice)
        torch.nn.Module.to(model.network, device())
        jobs, faults = sample_jobs(model.spec, [(prompt, 0) for prompt in prompts], edits)
        for job, reason in faults:
            log(f"failed: {job.prompt.id}: {reason}", visible=dist.main)
        check_jobs(model, jobs, cfg.longform)
        with load_interventions(model, sampling, choice) as interventions:
            parts = SearchParts(model, sampling, interventions)
            work = SearchWork(cfg, parts, Samples(out), inputs, dist)
            share_groups(work, jobs)
            results = _search_all(work, dist.shard(jobs))
        dist.barrier()
        score.run(_score_run(cfg))  # what is there is not computed again
        if dist.main:
            _conclude(cfg, Samples(out), results, [job.prompt.id for job in jobs], dist)
        dist.barrier()
    return out


def _refresh(
    cfg: SearchRun,
    prompts: Sequence[Prompt],
    inputs: Mapping[str, str],
    edits: Mapping[str, Edit],
    out: Path,
) -> None:
    """Drop songs of an earlier run that were made from other inputs, then write the prompts of this run."""
    samples, by_id = Samples(out), {prompt.id: prompt for prompt in prompts}
    songs = {row.sample_id: by_id[row.prompt_id] for row in samples.all_rows() if row.prompt_id in by_id}
    refresh_samples(samples, songs, inputs, lambda: None)
    write_prompts(out / PROMPTS, prompts, edits)


def _warn(cfg: SearchRun, prompts: Sequence[Prompt], dist: DistEnv) -> None:
    if judges := [axis for axis in cfg.search.reward.axes if axis in judge_axes()]:
        log(f"{', '.join(judges)}: judges elsewhere; songs that are chosen by them need another judge")
    method = build_method(cfg.search.method)
    if len(prompts) < dist.count and not isinstance(method, GroupedMethod):
        log(
            f"{len(prompts)} prompts for {dist.count} processes: by {cfg.search.method.name} a prompt is searched "
            "by one process"
        )


def _score_run(cfg: SearchRun) -> ScoreRun:
    return ScoreRun(samples=[cfg.out], out=str(cfg.scores_folder), scorers=cfg.search.reward.scorers())


@dataclass(frozen=True, eq=False)
class SearchParts:
    """The model of a search, and how it samples."""

    model: SongModel
    sampling: SamplingConfig
    """With the knobs that are left, see `resolve_knobs`."""
    interventions: Interventions


@dataclass(frozen=True, eq=False)
class SearchWork:
    """What the search of every prompt needs in one process."""

    cfg: SearchRun
    parts: SearchParts
    samples: Samples
    inputs: Mapping[str, str]
    dist: DistEnv

    @cached_property
    def method(self) -> SearchMethod:
        return build_method(self.cfg.search.method)

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        return build_scorers(self.cfg.search.reward.scorers())

    @cached_property
    def embeddings(self) -> EmbeddingStore:
        cache = self.cfg.embedding_cache
        return EmbeddingStore(self.parts.model, Path(cache) if cache else None)

    def store(self) -> FolderStore:
        """The songs that all processes have made by now, and where this one adds more."""
        return FolderStore(
            model=self.parts.model,
            scorers=self.scorers,
            reward=self.cfg.search.reward,
            samples=self.samples,
            scores=self.cfg.scores_folder,
            method=self.cfg.search.method.name,
            sample_row=partial(_sample_row, self.cfg, self.inputs),
            process=self.dist.rank,
        )

    def task(self, job: SampleJob, store: FolderStore, progress: Bar) -> SearchTask:
        """The search for the songs of one prompt."""
        cfg, parts = self.cfg, self.parts
        task = SearchTask(
            model=parts.model, job=job, sampling=parts.sampling, longform=cfg.longform, seed=cfg.seed,
            budget=cfg.search.budget, embeddings=self.embeddings, store=store, interventions=parts.interventions,
            inputs=self.inputs[job.prompt.id][:16], processes=math.ceil(self.dist.count / len(self.inputs)),
        )  # fmt: skip
        task.on_spend = partial(_advance, progress, task)
        return task


def share_groups(work: SearchWork, jobs: Sequence[SampleJob]) -> None:
    """Several processes make the songs of every prompt together, group by group, where the method has groups.

    A group that fails is left to the search of its prompt, which reports it.
    """
    cfg, dist, method = work.cfg, work.dist, work.method
    if dist.count == 1 or not isinstance(method, GroupedMethod):
        return
    total = round(len(jobs) * cfg.search.budget / dist.count)
    with bar("search", total, "song", visible=dist.main) as progress:
        tasks, store = [], work.store()
        for job in jobs:
            task = work.task(job, store, progress)
            tasks += [(task, numbers) for numbers in method.groups(task)]
        for task, numbers in dist.shard(tasks):
            with suppress(Exception):  # whatever one group brings about: the others go on
                method.search_group(task, numbers)
    dist.barrier()


def _search_all(work: SearchWork, jobs: Sequence[SampleJob]) -> list[SearchResult]:
    """The results of some prompts; a prompt that fails is reported and left out."""
    cfg, samples, dist = work.cfg, work.samples, work.dist
    store, results, failures = work.store(), list[SearchResult](), list[str]()
    with bar("search", round(len(jobs) * cfg.search.budget), "song", visible=dist.main) as progress:
        for number, job in enumerate(jobs, start=1):
            task = work.task(job, store, progress)
            try:
                result = search_prompt(task, work.method)
            except Exception as error:  # whatever one prompt brings about: the others go on
                failures.append(f"{job.prompt.id}: {song_fault(error)}")
                log(f"failed: {failures[-1]}")
                continue
            rows = ranked_rows(store.rows, result.songs, job.prompt.id)
            tables.append(samples.folder, SEARCH, rows, rank=dist.rank)
            results.append(result)
            total = round(number * cfg.search.budget)  # a method may need less than its budget
            progress.advance(
                max(0, total - progress.n_done), f"{job.prompt.id}: best {result.winner.reward.value:+.2f} sd"
            )
    if jobs and len(failures) == len(jobs) and dist.count == 1:  # other processes may have songs
        raise DataError(f"{samples.folder}: no prompt could be searched; first: {failures[0]}")
    return results


def _advance(progress: Bar, task: SearchTask, nfe: int) -> None:
    """Advance by whole songs' worth of evaluations."""
    start, stop = ((task.nfe - part) // task.song_nfe for part in (nfe, 0))
    if stop > start:
        progress.advance(stop - start)


def _sample_row(
    cfg: SearchRun, inputs: Mapping[str, str], embedded_job: EmbeddedJob, digests: SampleDigests
) -> SampleRow:
    job = embedded_job.job
    model = json.dumps({"name": cfg.model.name, **cfg.model.args}, sort_keys=True)
    return sample_row(
        job, cfg.sampling, cfg.longform, seed=cfg.seed, model=model, inputs=inputs[job.prompt.id],
        digests=digests,
    )  # fmt: skip


def _conclude(
    cfg: SearchRun,
    samples: Samples,
    results: Sequence[SearchResult],
    prompt_ids: Sequence[str],
    dist: DistEnv,
) -> None:
    """The page, what was gained, and the manifest once the search of every prompt is complete."""
    for spec in (SAMPLES, SEARCH):
        tables.compact(samples.folder, spec)
    rows = sorted(
        (row for row in tables.read_rows(samples.folder, SEARCH) if row.rank),
        key=lambda row: (prompt_ids.index(row.prompt_id) if row.prompt_id in prompt_ids else -1, row.rank),
    )
    complete = {row.prompt_id for row in rows}
    write_page(samples, rows, cfg.search.winners)
    report_gains(rows, cfg.search.method.name)
    if not complete:
        raise DataError(f"{samples.folder}: no prompt has a song; the messages above say why")
    if absent := [name for name in prompt_ids if name not in complete]:
        log(f"{len(absent)} of {len(prompt_ids)} prompts have no song; the same command tries them again")
        return
    finish(
        samples.folder,
        search=asdict(cfg.search),
        winners={row.prompt_id: row.sample_id for row in rows if row.rank == 1},
        songs=len(rows),
        nfe=sum(result.nfe for result in results) if dist.count == 1 else sum(row.nfe for row in rows),
        world=dist.count,
    )
