"""Optimisation of a model on examples in memory: the folder gets metrics, checkpoints and exported weights."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.data.datasets.pairs import Pairs
from diffdpo.data.datasets.stream import Examples
from diffdpo.errors import ConfigError
from diffdpo.models.adapter_schedule import timed_adapters
from diffdpo.models.adapters import save_adapter
from diffdpo.models.base import Inpaints, SongModel, require
from diffdpo.models.checkpoints import save_network
from diffdpo.models.compilation import compile_blocks
from diffdpo.objectives.composition import check_takes
from diffdpo.registry import closest
from diffdpo.runs import finish
from diffdpo.training.audit import audit_parameters
from diffdpo.training.best import best_folder
from diffdpo.training.checkpointing import enable_checkpointing
from diffdpo.training.config import (
    EXPORT,
    TrainConfig,
    check_slider,
    checkpointing_of,
    export_folder,
    result_folder,
)
from diffdpo.training.context_parallel import build_shards, check_context
from diffdpo.training.loop import fit
from diffdpo.training.lora import add_lora, check_dropout, fuse_lora
from diffdpo.training.optimizer import build_optimizer, check_weight_precision
from diffdpo.training.quantize import keep_adapter_only, keep_base_local, quantize_base
from diffdpo.training.run import LoopState, Training, averaged_weights
from diffdpo.training.setup import (
    build_auxiliaries,
    build_cache,
    build_ema,
)
from diffdpo.training.sharded_state import keep_whole_state
from diffdpo.training.step import CONTEXT
from diffdpo.training.strategy import (
    build_accelerator,
    check_strategy,
    distributed_name,
    full_weights,
    prepare_sharded,
    shard_frozen_copies,
    strategy_of,
    zero_stage,
)
from diffdpo.training.throughput import build_meter, cache_test
from diffdpo.training.validation import Validation
from diffdpo.training.validation_rule import is_stopped
from diffdpo.types import Objective


def optimize(  # noqa: PLR0913 - each is a part of the run
    model: SongModel,
    examples: Examples,
    objective: Objective,
    cfg: TrainConfig,
    *,
    out: Path,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    objective_name: str = "",
    validation: Validation | None = None,
) -> Path:
    """Train from the newest checkpoint in `out`, or from the start, to `cfg.steps`; returns the folder of weights.

    The model's encoders and codec are freed: examples hold embeddings and latents. Songs of `validation` keep the
    codec, on the CPU between two validations.
    """
    accelerator = accelerator or build_accelerator(cfg, str(out))
    check_config(cfg, model)
    check_weight_precision(cfg)
    check_strategy(cfg, strategy_of(accelerator), objective)
    check_context(cfg, model)
    check_slider(cfg, objective)
    check_dropout(cfg, objective)
    check_data(examples, objective, objective_name)
    model.place("encoders", None)
    model.place("codec", None if validation is None or validation.songs is None else "cpu")
    training, parameters = prepare_training(
        model, examples, objective, cfg, out=out, seed=seed, accelerator=accelerator, name=objective_name
    )
    steps, state = fit(
        training, lambda folder: export(training, folder / EXPORT, lora=cfg.lora is not None), validation
    )
    if accelerator.is_main_process:
        finish(
            out,
            steps=steps,
            **_selection(cfg, steps, state),
            world=accelerator.num_processes,
            distributed=distributed_name(accelerator),
            zero_stage=zero_stage(accelerator),
            precision=cfg.precision,
            trained_parameters=parameters,
        )
    for tracker in accelerator.trackers:  # not end_training: the processes go on, in a round
        tracker.finish()
    accelerator.wait_for_everyone()
    return result_folder(out)


def _selection(cfg: TrainConfig, steps: int, state: LoopState) -> dict[str, Any]:
    """Entries of the manifest: which weights are the result, which step was best by what, and why the run ended."""
    result, best = export_folder(Path(), steps), state.best
    if cfg.validation is None:
        return {"result": str(result)}
    entries: dict[str, Any] = {}
    if cfg.validation.best_metric:
        value = best.entries()["value"]
        entries["best"] = {"step": best.step, "metric": cfg.validation.best_metric, "value": value}
    if cfg.validation.keep == "best" and best.step >= 0:
        weights = best_folder(Path("checkpoints"), best.step) / EXPORT
        entries["best"]["weights"] = str(weights)
        result = weights if cfg.validation.result == "best" else result
    if is_stopped(best, cfg.validation) and steps < cfg.steps:
        entries["stopped"] = {"step": steps, "stale": best.stale}
    return {**entries, "result": str(result)}


def prepare_training(
    model: SongModel,
    examples: Examples,
    objective: Objective,
    cfg: TrainConfig,
    *,
    out: Path,
    seed: int,
    accelerator: Accelerator,
    name: str,
) -> tuple[Training, int]:
    """All that the loop needs, prepared by accelerate, and the number of trained parameters."""
    network = model.network
    meter = build_meter(model, objective, cfg, accelerator.device)
    quantize_base(network, cfg, accelerator)
    if cfg.lora is not None:
        add_lora(network, cfg.lora, model.lora_targets, seed)
    else:
        network.requires_grad_(True)
    if cfg.weights != "fp32":
        network.to(torch.bfloat16)
    if cfg.lora is not None and not cfg.compile and not strategy_of(accelerator).needs_equal_passes:
        fuse_lora(network)  # not where layers gather their shards; a compiler does it itself
    enable_checkpointing(network, checkpointing_of(cfg))
    reference, old = build_auxiliaries(cfg, objective, network, accelerator)
    cache = build_cache(cfg.reference, objective, accelerator)
    meter.is_cached = cache_test(cfg, cache)
    if cfg.compile:  # behind the references: a copy of a compiled block is not compiled
        compile_blocks(network, "train.compile")
    network.train()
    has_scaler = accelerator.scaler is not None
    optimizer = build_optimizer(network, cfg, accelerator.device, seed, has_scaler=has_scaler)
    parameters = audit_parameters(
        network, optimizer, {"reference": reference, "old": old}, lora=cfg.lora is not None
    )
    if cfg.base != "full":
        keep_base_local(network)
        keep_adapter_only(accelerator)
    if strategy_of(accelerator).is_fsdp:
        shard_frozen_copies([reference, old], accelerator)
        policy, optimizer = prepare_sharded(network, optimizer, accelerator)
        keep_whole_state(accelerator, policy, optimizer.optimizer)
    else:
        policy, optimizer = accelerator.prepare(network, optimizer)
    ema = build_ema(cfg, network, accelerator)
    accelerator.init_trackers("diffdpo")
    training = Training(
        accelerator=accelerator,
        model=model,
        policy=policy,
        reference=reference,
        old=old,
        cache=cache,
        objective=objective,
        optimizer=optimizer,
        ema=ema,
        examples=examples,
        cfg=cfg,
        seed=seed,
        shards=build_shards(cfg, accelerator),
        folder=out,
        fingerprint={"seed": seed, "objective": name, "parameters": count_parameters(network)},
        meter=meter,
    )
    return training, parameters


def export(training: Training, folder: Path, *, lora: bool) -> None:
    """Write the trained weights (their moving average if there is one), gathered from all processes."""
    accelerator = training.accelerator
    with averaged_weights(training):
        state = full_weights(accelerator, training.policy, trained=lora)
        if accelerator.is_main_process:
            bare = accelerator.unwrap_model(training.policy)
            (save_adapter if lora else save_network)(bare, state, folder)


def check_config(cfg: TrainConfig, model: SongModel) -> None:
    """ConfigError or DataError for a part or a capability that the configuration needs and the model lacks."""
    if timed_adapters(model.network) is not None:
        raise ConfigError(
            "train: the model has an adapter that acts at some times t only; leave its interval out"
        )
    if cfg.inpaint is not None:
        require(model, Inpaints)
    parts = (*model.parts, CONTEXT)
    for part in cfg.dropout:
        if part not in parts:
            raise ConfigError(
                f"train.dropout: this model has no part {part!r}.{closest(part, parts)} Known: {', '.join(parts)}."
            )


def check_data(examples: Examples, objective: Objective, name: str) -> None:
    """ConfigError for soft labels or spans in the data that the objective would ignore."""
    if isinstance(examples, Pairs | PairsInMemory):
        location = str(examples.path) if isinstance(examples, Pairs) else "pairs"
        check_takes(
            objective, name, soft_labels=examples.has_soft_labels, spans=examples.has_spans, location=location
        )


def count_parameters(network: Any) -> int:
    """Number of parameters of the network, trained or not."""
    return sum(parameter.numel() for parameter in network.parameters())
