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
from diffdpo.training.metrics import StepRecord, step_means
from diffdpo.training.references import ErrorCache
from diffdpo.training.step import AuxiliaryPolicy, StepNoise, noise_keys, outputs, sample_noise
from diffdpo.types import Batch, LossOutput, Objective, Outputs


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that a run of training consists of, prepared by accelerate."""

    accelerator: Accelerator
    model: SongModel
    policy: Any
    reference: AuxiliaryPolicy | None
    old: AuxiliaryPolicy | None = None
    cache: ErrorCache | None = None
    objective: Objective
    optimizer: Any
    ema: EMAModel | None
    examples: Examples
    cfg: TrainConfig
    seed: int
    folder: Path
    fingerprint: dict[str, Any]
    """What identifies the run: a checkpoint with another fingerprint is refused."""


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


def fit(training: Training, save_extra: Callable[[Path], None]) -> int:
    """Train from the newest checkpoint, or the start, to `cfg.steps`; returns the steps done now."""
    cfg, accelerator = training.cfg, training.accelerator
    folder = training.folder / "checkpoints"
    newest = checkpoint.latest(folder)
    first, running = checkpoint.load(accelerator, newest, training.fingerprint) if newest else (0, {})
    metrics = Metrics(training.folder, keep_until=first) if accelerator.is_main_process else None
    stream = batches(
        training.examples,
        _plan(first, cfg, accelerator),
        seed=training.seed,
        workers=cfg.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    with bar("train", cfg.steps, "step", done=first, enabled=accelerator.is_main_process) as progress:
        for step in range(first, cfg.steps):
            began = time.monotonic()
            means = _step(training, step, stream, running)
            running = update(training.objective, running, means)
            row = {"step": step + 1, **means}
            row["seconds"] = time.monotonic() - began
            _refuse_nonfinite(row, checkpoint.latest(folder))
            if metrics is not None and (step + 1) % cfg.log_every == 0:
                metrics.write(row)
            accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)
            if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                checkpoint.save(
                    accelerator,
                    folder,
                    step + 1,
                    training.fingerprint,
                    running,
                    save_extra,
                    cfg.keep_checkpoints,
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


def _step(
    training: Training, step: int, stream: Iterator[Batch], running: Mapping[str, float]
) -> dict[str, float]:
    """One optimiser step over the global batch; the mean of every metric over its examples."""
    cfg, accelerator = training.cfg, training.accelerator
    rate = learning_rate(cfg, step)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    records: list[StepRecord] = []
    norm: Any = None
    for _ in range(accelerator.gradient_accumulation_steps):
        batch = _to_device(next(stream), accelerator.device)
        with accelerator.accumulate(training.policy):
            noise = _sample_noise(training, batch)
            with accelerator.autocast():
                values = _outputs(training, batch, noise)
            result = training.objective(replace(values, running=running))
            accelerator.backward(
                (result.loss * batch.weight).mean()
            )  # under DeepSpeed this is also the update
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(training.policy.parameters(), cfg.grad_clip)
            training.optimizer.step()
            training.optimizer.zero_grad()
        records.append(
            StepRecord(
                result=_with_kl(training.objective, result, batch, running), t=noise.t, axes=batch.axes
            )
        )
    if training.ema is not None:
        training.ema.step(p for p in training.policy.parameters() if p.requires_grad)
    auxiliaries = {id(policy): policy for policy in (training.reference, training.old) if policy is not None}
    for auxiliary in auxiliaries.values():
        auxiliary.follow(training.policy, step + 1)
    means = step_means(accelerator, records, bins=cfg.time_bins, axes=getattr(training.examples, "axes", ()))
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


def _outputs(training: Training, batch: Batch, noise: StepNoise) -> Outputs:
    """Errors of all policies; the reference's from the cache where they were measured before."""
    model, policy, objective = training.model, training.policy, training.objective
    if training.cache is None:
        return outputs(model, policy, training.reference, batch, objective, noise, old=training.old)
    keys = tuple(map(str, noise_keys(batch, training.cfg)))
    cached = training.cache.lookup(keys, batch.latents.device)
    values = outputs(
        model, policy, training.reference, batch, objective, noise, old=training.old, cached=cached
    )
    if cached is None and values.reference is not None:
        training.cache.store(keys, values.reference)
    return values


def _sample_noise(training: Training, batch: Batch) -> StepNoise:
    """Drawn on the CPU, so that the numbers do not depend on the device, then moved."""
    noise = sample_noise(batch, training.cfg, training.seed, training.model.spec.times)
    device = batch.latents.device
    return replace(
        noise,
        t=noise.t.to(device),
        noise=noise.noise.to(device),
        dropped={part: where.to(device) for part, where in noise.dropped.items()},
        span=noise.span.to(device),
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
