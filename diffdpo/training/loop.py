"""The training loop: what happens each step is written in the step."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from diffdpo.data.datasets.stream import Examples, batches, micro_batches
from diffdpo.errors import UserError
from diffdpo.models.base import SongModel
from diffdpo.progress import bar
from diffdpo.runs import Metrics
from diffdpo.training import checkpoint
from diffdpo.training.config import TrainConfig
from diffdpo.training.metrics import Seen, step_means
from diffdpo.training.references import ErrorCache
from diffdpo.training.step import Draw, Reference, draw, keys, outputs
from diffdpo.types import Batch, LossOutput, Objective, Outputs


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a run of training consists of, prepared by accelerate."""

    accelerator: Accelerator
    model: SongModel
    policy: Any
    reference: Reference | None
    old: Reference | None = None
    cache: ErrorCache | None = None
    objective: Objective
    optimizer: Any
    ema: EMAModel | None
    examples: Examples
    cfg: TrainConfig
    seed: int
    folder: Path
    facts: dict[str, Any]
    """What identifies the run: a checkpoint with other facts is refused."""


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """The rate of a step (counted from 0), a function of the step alone."""
    warmup = min(1.0, (step + 1) / cfg.warmup_steps) if cfg.warmup_steps else 1.0
    progress = step / max(1, cfg.steps)
    decay = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[cfg.schedule]
    return cfg.learning_rate * warmup * decay


def fit(job: Job, save_extra: Callable[[Path], None]) -> int:
    """Train from the newest checkpoint, or the start, to `cfg.steps`; returns the steps done now."""
    cfg, accelerator = job.cfg, job.accelerator
    folder = job.folder / "checkpoints"
    newest = checkpoint.latest(folder)
    first, running = checkpoint.load(accelerator, newest, job.facts) if newest else (0, {})
    metrics = Metrics(job.folder, keep_until=first) if accelerator.is_main_process else None
    stream = batches(
        job.examples,
        _plan(first, cfg, accelerator),
        seed=job.seed,
        workers=cfg.workers,
        pin=accelerator.device.type == "cuda",
    )
    with bar("train", cfg.steps, "step", done=first, enabled=accelerator.is_main_process) as progress:
        for step in range(first, cfg.steps):
            began = time.monotonic()
            means = _step(job, step, stream, running)
            running = update(job.objective, running, means)
            row = {"step": step + 1, **means}
            row["seconds"] = time.monotonic() - began
            _refuse_nonfinite(row, checkpoint.latest(folder))
            if metrics is not None and (step + 1) % cfg.log_every == 0:
                metrics.write(row)
            accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)
            if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                checkpoint.save(
                    accelerator, folder, step + 1, job.facts, running, save_extra, cfg.keep_checkpoints
                )
            progress.advance(1, note=f"loss {row['loss']:.4f}")
    return cfg.steps - first


def _plan(first: int, cfg: TrainConfig, accelerator: Accelerator) -> Iterator[list[int]]:
    for step in range(first, cfg.steps):
        yield from micro_batches(
            step,
            global_batch=cfg.global_batch,
            per_device=cfg.per_device,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )


def update(
    objective: Objective, running: Mapping[str, float], means: Mapping[str, float]
) -> Mapping[str, float]:
    """What the objective keeps of earlier steps; most keep nothing."""
    keep = getattr(objective, "update", None)
    return keep(running, means) if keep else running


def _step(job: Job, step: int, stream: Iterator[Batch], running: Mapping[str, float]) -> dict[str, float]:
    """One optimiser step over the global batch; the mean of every metric over its examples."""
    cfg, accelerator = job.cfg, job.accelerator
    rate = learning_rate(cfg, step)
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    told: list[Seen] = []
    norm: Any = None
    for _ in range(accelerator.gradient_accumulation_steps):
        batch = _to_device(next(stream), accelerator.device)
        with accelerator.accumulate(job.policy):
            random = _draw(batch, cfg, job.seed)
            with accelerator.autocast():
                seen = _outputs(job, batch, random)
            result = job.objective(replace(seen, running=running))
            accelerator.backward(
                (result.loss * batch.weight).mean()
            )  # under DeepSpeed this is also the update
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(job.policy.parameters(), cfg.grad_clip)
            job.optimizer.step()
            job.optimizer.zero_grad()
        told.append(Seen(result=_with_kl(job.objective, result, batch, running), t=random.t, axes=batch.axes))
    if job.ema is not None:
        job.ema.step(p for p in job.policy.parameters() if p.requires_grad)
    for beside in {id(b): b for b in (job.reference, job.old) if b is not None}.values():
        beside.follow(job.policy, step + 1)
    means = step_means(accelerator, told, bins=cfg.time_bins, axes=getattr(job.examples, "axes", ()))
    return {**means, "grad_norm": float(norm), "learning_rate": rate}


def _with_kl(
    objective: Objective, result: LossOutput, batch: Batch, running: Mapping[str, float]
) -> LossOutput:
    """The coefficient of the KL divergence that beta implies, beside the metrics of objectives that have one."""
    coefficient = getattr(objective, "kl_coefficient", None)
    if coefficient is None:
        return result
    implied = coefficient(running, batch.frames.double().mean(1), batch.latents.shape[-1])
    return replace(result, metrics={**result.metrics, "implied_kl": implied})


def _outputs(job: Job, batch: Batch, random: Draw) -> Outputs:
    """Errors of all policies; the reference's from the cache where they were met before."""
    if job.cache is None:
        return outputs(job.model, job.policy, job.reference, batch, job.objective, random, old=job.old)
    own = tuple(map(str, keys(batch, job.cfg)))
    known = job.cache.known(own, batch.latents.device)
    seen = outputs(
        job.model, job.policy, job.reference, batch, job.objective, random, old=job.old, known=known
    )
    if known is None and seen.reference is not None:
        job.cache.keep(own, seen.reference)
    return seen


def _draw(batch: Batch, cfg: TrainConfig, seed: int) -> Draw:
    """Drawn on the CPU, so that the numbers do not depend on the device, then moved."""
    random, device = draw(batch, cfg, seed), batch.latents.device
    return replace(
        random,
        t=random.t.to(device),
        noise=random.noise.to(device),
        dropped={part: where.to(device) for part, where in random.dropped.items()},
        span=random.span.to(device),
    )


def _to_device(batch: Batch, device: torch.device) -> Batch:
    moved: dict[str, Any] = {
        name: value.to(device, non_blocking=True)
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(batch, **moved)


def _refuse_nonfinite(row: dict[str, float], saved: Path | None) -> None:
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
        kept = f"the last checkpoint is {saved}" if saved else "nothing was saved yet"
        raise UserError(
            f"step {row['step']}: {', '.join(bad)} not finite; stopped before the weights were saved, {kept}; "
            "lower train.learning_rate, or look for broken latents"
        )
