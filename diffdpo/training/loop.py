"""The training loop: batches, optimiser steps, metrics and checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffdpo.data.datasets.stream import batch_to, batches, micro_batches
from diffdpo.devices import widest_float
from diffdpo.errors import UserError
from diffdpo.models.frame_shards import divided_frames
from diffdpo.progress import Bar, bar
from diffdpo.runs import Metrics
from diffdpo.training import checkpoint
from diffdpo.training.best import prune_best, save_best
from diffdpo.training.config import TrainConfig
from diffdpo.training.context_parallel import data_place
from diffdpo.training.metrics import StepRecord, step_means
from diffdpo.training.optimizer import set_rate
from diffdpo.training.overflow import SKIPPED, count_overflows, scaling_metrics
from diffdpo.training.passes import backward_passes
from diffdpo.training.preemption import leave, stop_request
from diffdpo.training.run import LoopState, Training
from diffdpo.training.spikes import (
    SPIKE,
    SpikeHistory,
    check_spikes,
    extend_history,
    find_spike,
    report_spike,
)
from diffdpo.training.step import StepNoise, sample_noise
from diffdpo.training.step_profile import profiled_step
from diffdpo.training.strategy import clip_gradients
from diffdpo.training.throughput import step_note
from diffdpo.training.validation import Validation, report_validation, validate
from diffdpo.training.validation_rule import choose_best, is_due, is_stopped, metric_value
from diffdpo.types import Batch, LossOutput, Objective


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


def fit(
    training: Training, save_extra: Callable[[Path], None], validation: Validation | None = None
) -> tuple[int, LoopState]:
    """Train from the newest checkpoint, or the start, to `cfg.steps`, or to where validation ends the training.

    The last step, and the state of the loop after it.
    """
    cfg, accelerator = training.cfg, training.accelerator
    folder = training.folder / "checkpoints"
    newest = checkpoint.latest_checkpoint(folder)
    manifest = (
        checkpoint.load_checkpoint(accelerator, newest, training.fingerprint) if newest else {"step": 0}
    )
    first, state = int(manifest["step"]), LoopState.restore(manifest)
    keep_until = first if newest else -1
    metrics = Metrics(training.folder, keep_until=keep_until) if accelerator.is_main_process else None
    loader = batches(
        training.examples,
        _plan(first, cfg, accelerator),
        seed=training.seed,
        workers=cfg.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    meter, stream = training.meter, training.meter.watch(loader)
    overflows, step = 0, first
    is_main = accelerator.is_main_process
    with bar("train", cfg.steps, "step", n_done=first, visible=is_main) as progress, stop_request() as stop:
        if newest is None:
            state = _validate(training, validation, 0, state, metrics, progress, save_extra)
        while step < cfg.steps and not is_stopped(state.best, cfg.validation):
            start_s = time.monotonic()
            with divided_frames(training.shards), profiled_step(training, step, first) as profile:
                row = {"step": step + 1, **train_step(training, step, stream, state.objective, state.spikes)}
            state = _after_step(training, state, row)
            eta_s = progress.pace.eta_s(cfg.steps - step - 1)
            seconds = time.monotonic() - start_s - profile.overhead_s
            row |= meter.measure(seconds, accelerator.num_processes, eta_s)
            if profile.overhead_s:
                row |= {"profiled": 1.0}
                progress.exclude(profile.overhead_s)
            _refuse_nonfinite(row, checkpoint.latest_checkpoint(folder))
            overflows = count_overflows(row, overflows, visible=accelerator.is_main_process)
            step += 1
            _log_row(training, row, metrics if step % cfg.log_every == 0 else None)
            state = _validate(training, validation, step, state, metrics, progress, save_extra)
            is_last = step == cfg.steps or is_stopped(state.best, cfg.validation)
            is_stop = stop.is_shared(accelerator)
            if step % cfg.save_every == 0 or is_last or is_stop:
                _save(training, step, state, save_extra)
            if is_stop and not is_last:
                leave(stop, checkpoint.latest_checkpoint(folder), accelerator)
            progress.advance(1, note=step_note(row))
    return step, state


def _log_row(training: Training, row: Mapping[str, float], metrics: Metrics | None) -> None:
    """A row of metrics to metrics.jsonl and the trackers."""
    if metrics is not None:
        metrics.write(row)
    training.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))


def _validate(
    training: Training,
    validation: Validation | None,
    step: int,
    state: LoopState,
    metrics: Metrics | None,
    progress: Bar,
    save_extra: Callable[[Path], None],
) -> LoopState:
    """Validate a step if it is due; the state with the best step so far, whose weights may be kept."""
    cfg, accelerator = training.cfg.validation, training.accelerator
    if validation is None or cfg is None or not is_due(step, training.cfg.steps, cfg):
        return state
    start_s = time.monotonic()
    values = validate(training, validation, step, state.objective, progress.describe)
    best = choose_best(state.best, step, metric_value(values, cfg), cfg)
    if cfg.keep == "best" and best.step == step:
        entries = {"metric": cfg.best_metric, "value": best.value}
        save_best(accelerator, training.folder / "checkpoints", step, entries, save_extra)
    _log_row(training, {"step": step, **{k: v for k, v in values.items() if math.isfinite(v)}}, metrics)
    report_validation(step, values, visible=accelerator.is_main_process)
    progress.exclude(time.monotonic() - start_s)
    return replace(state, best=best)


def _save(training: Training, step: int, state: LoopState, save_extra: Callable[[Path], None]) -> None:
    """Publish the checkpoint of a step."""
    folder = training.folder / "checkpoints"
    checkpoint.save_checkpoint(
        training.accelerator, folder, step, training.fingerprint, state.entries(), save_extra,
        training.cfg.keep_checkpoints,
    )  # fmt: skip
    if training.accelerator.is_main_process:
        prune_best(folder, state.best.step)


def _after_step(training: Training, state: LoopState, row: Mapping[str, float]) -> LoopState:
    """The state after a step with these metrics. UserError for spikes that do not end."""
    if not (row.get(SKIPPED) or row.get(SPIKE)):
        state = replace(state, objective=update(training.objective, state.objective, row))
    if training.cfg.spike is not None:
        state = replace(state, spikes=extend_history(state.spikes, training.cfg.spike, row))
        newest = checkpoint.latest_checkpoint(training.folder / "checkpoints")
        check_spikes(state.spikes, training.cfg.spike, int(row["step"]), newest)
    return state


def _plan(first: int, cfg: TrainConfig, accelerator: Accelerator) -> Iterator[list[int]]:
    rank, world = data_place(cfg, accelerator.process_index, accelerator.num_processes)
    for step in range(first, cfg.steps):
        yield from micro_batches(
            step, global_batch=cfg.global_batch, per_device=cfg.per_device, rank=rank, world=world
        )


def update(
    objective: Objective, objective_state: Mapping[str, float], means: Mapping[str, float]
) -> Mapping[str, float]:
    """The objective's state after a step; unchanged for an objective without `update`."""
    objective_update = getattr(objective, "update", None)
    return objective_update(objective_state, means) if objective_update else objective_state


def train_step(
    training: Training,
    step: int,
    stream: Iterator[Batch],
    objective_state: Mapping[str, float],
    spikes: SpikeHistory | None = None,
) -> dict[str, float]:
    """One optimiser step over the global batch; the mean of every metric over its examples."""
    cfg, accelerator = training.cfg, training.accelerator
    rate = learning_rate(cfg, step)
    set_rate(training.optimizer, rate)
    records: list[StepRecord] = []
    norm: Any = None
    means: dict[str, float] = {}
    spike = ""
    for _ in range(accelerator.gradient_accumulation_steps):
        batch = batch_to(next(stream), accelerator.device)
        with accelerator.accumulate(training.policy):
            noise = _sample_noise(training, batch)
            result = backward_passes(training, batch, noise, objective_state)
            result = _with_kl(training.objective, result, batch, objective_state)
            records.append(StepRecord(result=result, t=noise.t, axes=batch.axes))
            if accelerator.sync_gradients:
                norm = clip_gradients(accelerator, training.policy, cfg.grad_clip)
                means = _means(training, records)
                spike = _spike(training, spikes, means["loss"], norm)
            if not spike:
                training.optimizer.step()
            elif accelerator.scaler is not None:
                accelerator.scaler.update()
            training.optimizer.zero_grad()
    if spike:
        report_spike(step + 1, spike, visible=accelerator.is_main_process)
        row = {**means, SPIKE: 1.0, "grad_norm": float(norm), "learning_rate": rate}
        return {name: value for name, value in row.items() if math.isfinite(value)}
    scaling = scaling_metrics(accelerator, training.optimizer)
    if cfg.spike is not None:
        scaling[SPIKE] = 0.0
    if scaling.get(SKIPPED):  # nothing moved, and the norm of the gradients is no number
        return {**means, **scaling, "learning_rate": rate}
    _follow(training, step + 1)
    return {**means, **scaling, "grad_norm": float(norm), "learning_rate": rate}


def _means(training: Training, records: Sequence[StepRecord]) -> dict[str, float]:
    axes = getattr(training.examples, "axes", ())
    return step_means(training.accelerator, records, bins=training.cfg.time_bins, axes=axes)


def _spike(training: Training, history: SpikeHistory | None, loss: float, norm: Any) -> str:
    """Why the update of a step is to be skipped, the same on all processes; "" where it is not."""
    if training.cfg.spike is None or history is None:
        return ""
    accelerator: Any = training.accelerator
    equal_norm = accelerator.reduce(torch.as_tensor(norm, device=accelerator.device).float(), "mean")
    is_fp16 = accelerator.mixed_precision == "fp16"
    return find_spike(history, training.cfg.spike, loss=loss, grad_norm=float(equal_norm), is_fp16=is_fp16)


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
    device = batch.latents.device
    kl = coefficient(
        objective_state, batch.frames.to(device, widest_float(device)).mean(1), batch.latents.shape[-1]
    )
    return replace(result, metrics={**result.metrics, "implied_kl": kl})


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
    )


def _refuse_nonfinite(row: dict[str, float], newest: Path | None) -> None:
    if bad := [name for name, value in row.items() if not math.isfinite(value)]:
        note = f"the last checkpoint is {newest}" if newest else "nothing was saved yet"
        raise UserError(
            f"step {row['step']}: {', '.join(bad)} not finite; stopped before the weights were saved, {note}; "
            "lower train.learning_rate, or look for broken latents"
        )
