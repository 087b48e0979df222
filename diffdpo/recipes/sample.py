"""Prompts and seeds to songs: latents, FLAC and one row a song; resumable by sample id, shardable."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from omegaconf import MISSING
from torch import Tensor

from diffdpo.config import INPUT_FILE
from diffdpo.data import tables
from diffdpo.data.edits import Edit
from diffdpo.data.latents import write_latents
from diffdpo.data.plans import write_plan
from diffdpo.data.prompts import DURATION, EDIT, prompt_row, read_edits, read_prompts
from diffdpo.data.samples import PROMPTS, SAMPLES, SampleRow, Samples, sample_id
from diffdpo.errors import ConfigError, DataError, UserError
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model, check_model
from diffdpo.progress import bar, say
from diffdpo.registry import Choice
from diffdpo.report.gallery import write_gallery
from diffdpo.run_dir import Workers, claim, device, workers
from diffdpo.runs import finish, settle
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, OnFrames, compose, count_steps
from diffdpo.sampling.render import Preview, SongAudio, write_song
from diffdpo.sampling.sample_jobs import (
    EmbeddedJob,
    SampleJob,
    check_jobs,
    embed_jobs,
    sample_jobs,
    song_audio,
    song_request,
)
from diffdpo.types import Prompt


@dataclass
class SampleRun:
    """Prompts to songs."""

    out: str = MISSING
    prompts: str = field(default=MISSING, metadata=INPUT_FILE)
    """A prompts.jsonl."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    longform: LongformConfig = field(default_factory=LongformConfig)
    per_prompt: int = 1
    """Songs for each prompt, each with noise of its own."""
    seed: int = 0
    shard: int = 0
    shards: int = 1
    """Make only every `shards`-th song, beginning with number `shard`: to split work over machines."""
    audio: bool = True
    """Decode and write FLAC; without, only latents are written."""
    embedding_cache: str = ""
    """Folder that keeps embeddings of prompts between runs, by content."""


FAILURES = (UserError, RuntimeError, ValueError, ArithmeticError)
"""What may go wrong with one song without being wrong with all: recorded, and tried again by the same command."""


def check(cfg: SampleRun) -> None:
    """The parts that are chosen by name, before anything is loaded."""
    check_model(cfg.model)


def run(cfg: SampleRun) -> Path:
    """Generate the songs that are not there yet."""
    if not 0 <= cfg.shard < cfg.shards:
        raise ConfigError(f"shard={cfg.shard} must be at least 0 and below shards={cfg.shards}")
    prompts, edits = read_prompts(cfg.prompts), read_edits(cfg.prompts)
    group = workers()
    out = claim(cfg, free=("sampling.batch", "shard", "shards"), group=group)
    samples = Samples(out)
    if group.main:
        _write_prompts(out / PROMPTS, prompts, edits)
    finished = {row.sample_id for row in samples.rows() if _complete(samples, row.sample_id, cfg.audio)}
    wanted = [(prompt, k) for prompt in prompts for k in range(cfg.per_prompt)]
    mine = wanted[cfg.shard :: cfg.shards]
    todo = [(prompt, k) for prompt, k in mine if sample_id(prompt.id, k) not in finished]
    if todo:
        model = build_model(cfg.model)
        torch.nn.Module.to(model.network, device())
        jobs = sample_jobs(model.spec, todo, edits)
        check_jobs(model, jobs, cfg.longform)
        _sample_all(cfg, model, group.share(jobs), samples, group)
    group.barrier()
    if group.main:
        _conclude(cfg, samples, [sample_id(prompt.id, k) for prompt, k in wanted], group)
    group.barrier()
    return out


def _conclude(cfg: SampleRun, samples: Samples, wanted: Sequence[str], group: Workers) -> None:
    """The page, and the manifest once no song is missing: shards may still be at work, here or elsewhere."""
    if cfg.shards == 1:  # nobody else writes here
        tables.compact(samples.folder, SAMPLES)
    rows = {row.sample_id: row for row in samples.all_rows()}
    there = [rows[name] for name in wanted if name in rows]
    failed = [row for row in there if row.error]
    for row in failed[:5]:
        say(f"failed: {row.sample_id}: {row.error}")
    write_gallery(samples, there, missing=len(wanted) - len(there))
    if failed and len(failed) == len(there):
        raise DataError(f"{samples.folder}: no song could be made; first: {failed[0].error}")
    if failed:
        say(f"{len(failed)} of {len(there)} songs failed; the same command tries them again")
    if len(there) < len(wanted):
        say(f"{len(there)} of {len(wanted)} songs are there; the rest is for the other shards")
    else:
        finish(samples.folder, samples=len(there) - len(failed), failed=len(failed), world=group.count)


def _sample_all(
    cfg: SampleRun, model: SongModel, jobs: Sequence[SampleJob], samples: Samples, group: Workers
) -> None:
    rank = cfg.shard + cfg.shards * group.rank  # no two processes write the same part, whatever their number
    append = partial(tables.append, samples.folder, SAMPLES, rank=rank)
    store = EmbeddingStore(model, Path(cfg.embedding_cache) if cfg.embedding_cache else None)
    embedded, failures = embed_jobs(store, jobs, cfg.seed)
    model.place("encoders", None)
    append([_row(cfg, job, error=failures[job.sample_id]) for job in jobs if job.sample_id in failures])
    size = cfg.sampling.batch
    batches = [embedded[start : start + size] for start in range(0, len(embedded), size)]
    total = sum(
        count_steps(model.spec, [e.job.to_generate for e in batch], cfg.sampling, cfg.longform)
        for batch in batches
    )
    with bar("sample", total, "step", enabled=group.main) as progress:
        for batch in batches:
            append(_sample_batch(cfg, model, batch, samples, progress.advance))


def _sample_batch(
    cfg: SampleRun,
    model: SongModel,
    batch: Sequence[EmbeddedJob],
    samples: Samples,
    on_step: Callable[[], None],
) -> list[SampleRow]:
    """Generate and write the songs of a batch; a row each, with the reason for those that could not be."""
    rows, requests = [], {}
    for embedded in batch:
        try:
            requests[embedded.job.sample_id] = song_request(model, embedded)
        except FAILURES as error:
            rows.append(_row(cfg, embedded.job, error=_reason(error)))
    ready = [embedded for embedded in batch if embedded.job.sample_id in requests]
    with previews(model, samples, [e.job for e in ready] if cfg.audio else ()) as grow:
        songs = compose(
            model,
            list(requests.values()),
            cfg.sampling,
            cfg.longform,
            seed=cfg.seed,
            on_step=on_step,
            on_frames=grow,
        )
        rows += [
            _write(cfg, model, embedded, latents, samples)
            for embedded, latents in zip(ready, songs, strict=True)
        ]
    return rows


@contextmanager
def previews(model: SongModel, samples: Samples, jobs: Sequence[SampleJob]) -> Iterator[OnFrames]:
    """Previews of songs of several windows while they are generated; removed when the songs are complete."""
    files = {job.sample_id: Preview(samples.preview(job.sample_id)) for job in jobs}
    before = {job.sample_id: job.frames_before(model.spec.frames_per_second) for job in jobs}

    def grow(name: str, latents: Float[Tensor, "frame channel"], finished: int) -> None:
        preview = files.get(name)
        if preview is None or (finished == len(latents) and not preview.frames):
            return
        try:
            preview.grow(SongAudio(model, latents, -before[name]), finished)
        except FAILURES as error:
            say(f"{name}: no preview: {_reason(error)}")
            files.pop(name).remove()

    try:
        yield grow
    finally:
        for preview in files.values():
            preview.remove()


def _write(
    cfg: SampleRun,
    model: SongModel,
    embedded: EmbeddedJob,
    latents: Float[Tensor, "frame channel"],
    samples: Samples,
) -> SampleRow:
    """Write one song; a row with the reason if that is impossible."""
    job = embedded.job
    sha256 = ""
    try:
        if not torch.isfinite(latents).all():
            raise DataError("the sampled latents are not numbers")
        if cfg.audio:
            sound, gain = song_audio(model, job, latents)
            sha256 = write_song(sound, samples.audio(job.sample_id), at_gain=gain)
        if embedded.plan is not None:
            write_plan(samples.plan(job.sample_id), embedded.plan)
        write_latents(samples.latents(job.sample_id), latents)
    except FAILURES as error:
        return _row(cfg, job, sha256=sha256, error=_reason(error))
    return _row(cfg, job, sha256=sha256)


def _row(cfg: SampleRun, job: SampleJob, *, sha256: str = "", error: str = "") -> SampleRow:
    return SampleRow(
        sample_id=job.sample_id,
        prompt_id=job.prompt.id,
        group=job.prompt.group,
        seed=cfg.seed,
        frames=job.frames,
        duration_s=job.prompt.duration_s,
        model=json.dumps({"name": cfg.model.name, **cfg.model.args}, sort_keys=True),
        sampling=json.dumps(asdict(cfg.sampling), sort_keys=True),
        longform=json.dumps(asdict(cfg.longform), sort_keys=True),
        edit=job.edit_json(),
        sha256=sha256,
        error=error,
    )


def _reason(error: Exception) -> str:
    """One line."""
    return " ".join(str(error).split()) or type(error).__name__


def _complete(samples: Samples, name: str, with_audio: bool) -> bool:
    return samples.latents(name).is_file() and (samples.audio(name).is_file() or not with_audio)


def _write_prompts(path: Path, prompts: Sequence[Prompt], edits: Mapping[str, Edit]) -> None:
    """A copy of the prompts beside the songs; paths in it are absolute, since it lies elsewhere."""
    lines = []
    for prompt in prompts:
        row = prompt_row(prompt)
        if "style_audio" in row:
            row["style_audio"] = str(Path(row["style_audio"]).resolve())
        if prompt.id in edits:
            del row[DURATION]
            row[EDIT] = asdict(edits[prompt.id]) | {"song": str(Path(edits[prompt.id].song).resolve())}
        lines.append(json.dumps(row, ensure_ascii=False))
    settle(path, "".join(f"{line}\n" for line in lines))
