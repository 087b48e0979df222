"""Prompts and seeds to songs: latents, FLAC and one row a song; resumable by sample id, shardable."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from diffdpo import audio
from diffdpo.config import SampleRun, build_model
from diffdpo.data import tables
from diffdpo.data.latents import write_latents
from diffdpo.data.prompts import KEYS, read_prompts
from diffdpo.data.samples import KEY, PROMPTS, TABLE, Samples, sample_id
from diffdpo.errors import ConfigError, DataError
from diffdpo.models.base import SongModel
from diffdpo.progress import bar, say
from diffdpo.recipes.common import Workers, claim, device, workers
from diffdpo.runs import finish, settle
from diffdpo.sampling import Request, batches_of, embed_all, sample
from diffdpo.types import Prompt


def run(cfg: SampleRun) -> Path:
    if not 0 <= cfg.shard < cfg.shards:
        raise ConfigError(f"shard={cfg.shard} must be at least 0 and below shards={cfg.shards}")
    prompts = read_prompts(cfg.prompts)
    group = workers()
    out = claim(cfg, free=("sampling.batch", "shard"), group=group)
    samples = Samples(out)
    if group.main:
        _write_prompts(out / PROMPTS, prompts)
    finished = {row["sample_id"] for row in samples.rows() if _complete(samples, row["sample_id"], cfg.audio)}
    wanted = [(prompt, k) for prompt in prompts for k in range(cfg.per_prompt)][cfg.shard :: cfg.shards]
    todo = [(prompt, k) for prompt, k in wanted if sample_id(prompt.id, k) not in finished]
    mine = group.share(todo)
    if todo:
        model = build_model(cfg.model)
        torch.nn.Module.to(model.network, device())
        _sample_all(cfg, model, mine, samples, group)
    group.barrier()
    if group.main:
        if cfg.shards == 1:  # other shards may still be writing into the same folder
            tables.compact(out / TABLE, KEY)
        rows = samples.all_rows()
        failed = [row for row in rows if row["error"]]
        for row in failed[:5]:
            say(f"failed: {row['sample_id']}: {row['error']}")
        if failed and len(failed) == len(rows):
            raise DataError(f"{out}: no song could be made; first: {failed[0]['error']}")
        finish(out, samples=len(rows) - len(failed), failed=len(failed), world=group.count)
    group.barrier()
    return out


def _sample_all(
    cfg: SampleRun, model: SongModel, todo: list[tuple[Prompt, int]], samples: Samples, group: Workers
) -> None:
    embedded = embed_all(model, list({prompt.id: prompt for prompt, _ in todo}.values()))
    requests = [Request(sample_id(prompt.id, k), embedded[prompt.id]) for prompt, k in todo]
    batches = batches_of(requests, cfg.sampling.batch)
    with bar("sample", len(batches) * cfg.sampling.steps, "step", enabled=group.main) as progress:
        for batch in batches:
            songs = sample(model, batch, cfg.sampling, seed=cfg.seed, on_step=progress.advance)
            rows = [_keep(cfg, model, r, latents, samples) for r, latents in zip(batch, songs, strict=True)]
            tables.append(samples.folder / TABLE, rows, rank=cfg.shard * group.count + group.rank)


def _keep(
    cfg: SampleRun, model: SongModel, request: Request, latents: Tensor, samples: Samples
) -> tables.Row:
    """Write one song; a row with the reason if it is not made of numbers."""
    prompt = request.prompt
    row = {
        "sample_id": request.sample_id,
        "prompt_id": prompt.id,
        "group": prompt.group,
        "seed": cfg.seed,
        "frames": len(latents),
        "duration_s": prompt.duration_s,
        "model": json.dumps({"name": cfg.model.name, **cfg.model.args}, sort_keys=True),
        "sampling": json.dumps(asdict(cfg.sampling), sort_keys=True),
        "sha256": "",
        "error": "",
    }
    if not torch.isfinite(latents).all():
        return row | {"error": "the sampled latents are not numbers"}
    write_latents(samples.latents(request.sample_id), latents)
    if cfg.audio:
        path = samples.audio(request.sample_id)
        audio.write(path, audio.limit(audio.normalise(model.decode(latents), -16.0)))
        heard = audio.read(path)
        row["sha256"] = audio.pcm_sha256(heard.samples, heard.sample_rate)
    return row


def _complete(samples: Samples, name: str, with_audio: bool) -> bool:
    return samples.latents(name).is_file() and (samples.audio(name).is_file() or not with_audio)


def _write_prompts(path: Path, prompts: list[Prompt]) -> None:
    """A copy of the prompts beside the songs; paths in it are absolute, since it lies elsewhere."""
    lines = []
    for prompt in prompts:
        row = {key: getattr(prompt, key) for key in KEYS if getattr(prompt, key) is not None}
        if "style_audio" in row:
            row["style_audio"] = str(Path(row["style_audio"]).resolve())
        lines.append(json.dumps(row, ensure_ascii=False))
    settle(path, "".join(f"{line}\n" for line in lines))
