"""The training loop: batches, optimiser steps, metrics and checkpoints."""

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
from diffdpo.devices import widest_float
from diffdpo.errors import UserError
from diffdpo.models.base import SongModel
from diffdpo.progress import bar
from diffdpo.runs import Metrics
from diffdpo.training import checkpoint
from diffdpo.training.config import TrainConfig
from diffdpo.training.metrics import StepRecord, step_means
from diffdpo.training.optimizer import set_rate
from diffdpo.training.overflow import SKIPPED, count_overflows, scaling_metrics
from diffdpo.training.references import ErrorCache
from diffdpo.training.split import Standards, split_backward
from diffdpo.training.step import AuxiliaryPolicy, StepNoise, noise_keys, outputs, sample_noise
from diffdpo.types import Batch, LossOutput, Objective


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
    newest = checkpoint.latest_checkpoint(folder)
    first, objective_state = (
        checkpoint.load_checkpoint(accelerator, newest, training.fingerprint) if newest else (0, {})
    )
    metrics = Metrics(training.folder, keep_until=first) if accelerator.is_main_process else None
    stream = batches(
        training.examples,
        _plan(first, cfg, accelerator),
        seed=training.seed,
        workers=cfg.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    overflows = 0
    with bar("train", cfg.steps, "step", n_done=first, visible=accelerator.is_main_process) as progress:
        for step in range(first, cfg.steps):
            start_s = time.monotonic()
            means = train_step(training, step, stream, objective_state)
            if not means.get(SKIPPED):
                objective_state = update(training.objective, objective_state, means)
            row = {"step": step + 1, **means}
            row["seconds"] = time.monotonic() - start_s
            _refuse_nonfinite(row, checkpoint.latest_checkpoint(folder))
            overflows = count_overflows(row, overflows, visible=accelerator.is_main_process)
            if metrics is not None and (step + 1) % cfg.log_every == 0:
                metrics.write(row)
            accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step + 1)
            if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                checkpoint.save_checkpoint(
                    accelerator,
                    folder,
                    step + 1,
                    training.fingerprint,
                    objective_state,
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
    objective: Objective, objective_state: Mapping[str, float], means: Mapping[str, float]
) -> Mapping[str, float]:
    """The objective's state after a step; unchanged for an objective without `update`."""
    objective_update = getattr(objective, "update", None)
    return objective_update(objective_state, means) if objective_update else objective_state


def train_step(
    training: Training, step: int, stream: Iterator[Batch], objective_state: Mapping[str, float]
) -> dict[str, float]:
    """One optimiser step over the global batch; the mean of every metric over its examples."""
    cfg, accelerator = training.cfg, training.accelerator
    rate = learning_rate(cfg, step)
    set_rate(training.optimizer, rate)
    records: list[StepRecord] = []
    norm: Any = None
    for _ in range(accelerator.gradient_accumulation_steps):
        batch = _to_device(next(stream), accelerator.device)
        with accelerator.accumulate(training.policy):
            noise = _sample_noise(training, batch)
            result = _backward(training, batch, noise, objective_state)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(training.policy.parameters(), cfg.grad_clip)
            training.optimizer.step()
            training.optimizer.zero_grad()
        records.append(
            StepRecord(
                result=_with_kl(training.objective, result, batch, objective_state),
                t=noise.t,
                axes=batch.axes,
            )
        )
    scaling = scaling_metrics(accelerator, training.optimizer)
    means = step_means(accelerator, records, bins=cfg.time_bins, axes=getattr(training.examples, "axes", ()))
    if scaling.get(SKIPPED):  # nothing moved, and the norm of the gradients is no number
        return {**means, **scaling, "learning_rate": rate}
    _follow(training, step + 1)
    return {**means, **scaling, "grad_norm": float(norm), "learning_rate": rate}


def _follow(training: Training, step: int) -> None:
    """Moving averages and auxiliary policies after the policy's step, counted from 1."""
    if training.ema is not None:
        training.ema.step(p for p in training.policy.parameters() if p.requires_grad)
    auxiliaries = {id(policy): policy for policy in (training.reference, training.old) if policy is not None}
    for auxiliary in auxiliaries.values():
        auxiliary.follow(training.policy, step)


def _with_kl(
    objective: Objective, result: LossOutput, batch: Batch, objective_state: Mapping[str, float]
) -> LossOutput:
    """A result with the coefficient of the KL divergence that beta implies, for objectives that have one."""
    coefficient = getattr(objective, "kl_coefficient", None)
    if coefficient is None:
        return result
    kl = coefficient(
        objective_state, batch.frames.to(widest_float(batch.frames.device)).mean(1), batch.latents.shape[-1]
    )
    return replace(result, metrics={**result.metrics, "implied_kl": kl})


def _backward(
    training: Training, batch: Batch, noise: StepNoise, objective_state: Mapping[str, float]
) -> LossOutput:
    """Add the gradient of a micro-batch; the reference's errors are from the cache where it holds them.

    Under DeepSpeed the backward pass that ends a step is also its update.
    """
    model, policy, objective = training.model, training.policy, training.objective
    keys = () if training.cache is None else tuple(map(str, noise_keys(batch, training.cfg)))
    cached = None if training.cache is None else training.cache.lookup(keys, batch.latents.device)
    if training.cfg.split_backward:
        values, result = split_backward(
            training.accelerator, model, policy, batch, objective, noise, objective_state=objective_state,
            standards=Standards(reference=training.reference, old=training.old, cached=cached),
        )  # fmt: skip
    else:
        with training.accelerator.autocast():
            values = outputs(
                model, policy, training.reference, batch, objective, noise, old=training.old, cached=cached
            )
        result = objective(replace(values, state=objective_state))
        training.accelerator.backward((result.loss * batch.weight).mean())
    if training.cache is not None and cached is None and values.reference is not None:
        training.cache.store(keys, values.reference)
    return result


def _sample_noise(training: Training, batch: Batch) -> StepNoise:
    """The randomness of a batch, drawn on the CPU so that its numbers do not depend on the device."""
    spec = training.model.spec
    noise = sample_noise(batch, training.cfg, training.seed, spec.times, headroom=spec.headroom)
    device = batch.latents.device
    return replace(
        noise,
        t=noise.t.to(device),
        noise=noise.noise.to(device),
        drop_masks={part: mask.to(device) for part, mask in noise.drop_masks.items()},
        span=noise.span.to(device),
    )


def _to_device(batch: Batch, device: torch.device) -> Batch:
    tensors: dict[str, Any] = {
        name: value.to(device, non_blocking=True)
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(batch, **tensors)


def _refuse_nonfinite(row: dict[str, float], newest: Path | None) -> None:
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
        note = f"the last checkpoint is {newest}" if newest else "nothing was saved yet"
        raise UserError(
            f"step {row['step']}: {', '.join(bad)} not finite; stopped before the weights were saved, {note}; "
            "lower train.learning_rate, or look for broken latents"
        )
