"""Train a song model: wiring of model, data, objective and accelerator around `training.loop.fit`."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from diffdpo.config import TrainRun, build_model, build_objective
from diffdpo.data.datasets.candidates import Source
from diffdpo.data.datasets.examples import build_examples
from diffdpo.data.datasets.stream import accumulation
from diffdpo.errors import ConfigError
from diffdpo.models.adapters import save_adapter
from diffdpo.models.base import Inpaints, SongModel, require
from diffdpo.models.checkpoints import save_network
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.progress import say
from diffdpo.registry import closest
from diffdpo.run_dir import claim, workers
from diffdpo.runs import finish, read_json
from diffdpo.training.audit import audit
from diffdpo.training.config import FREE_TO_CHANGE
from diffdpo.training.loop import Training, fit
from diffdpo.training.setup import (
    add_lora,
    build_accelerator,
    build_auxiliary,
    build_cache,
    build_optimizer,
    compile_blocks,
    trainable,
    zero_stage,
)
from diffdpo.training.step import CONTEXT, AuxiliaryPolicy
from diffdpo.types import Objective

EXPORT = "export"


def run(cfg: TrainRun) -> Path:
    objective = build_objective(cfg.objective)
    accumulation(cfg.train.global_batch, cfg.train.per_device, int(os.environ.get("WORLD_SIZE", "1")))
    accelerator = build_accelerator(cfg.train, cfg.out)
    out = claim(cfg, free=[f"train.{key}" for key in FREE_TO_CHANGE], group=workers())
    if _already(out, cfg):
        say(f"{out}: {cfg.train.steps} steps are done", enabled=accelerator.is_main_process)
        return out
    model = build_model(cfg.model)
    store = EmbeddingStore(model, Path(cfg.embedding_cache) if cfg.embedding_cache else None)
    source = Source(
        embed=store.embed,
        embed_plan=store.embed_plan,
        frames_per_second=model.spec.frames_per_second,
        seed=cfg.seed,
        report=partial(say, enabled=accelerator.is_main_process),
    )
    examples = build_examples(cfg.data, objective.batch_kind, cfg.objective.name, source)
    _check_model(cfg, model)
    for part in ("encoders", "codec"):
        model.place(part, None)
    network = model.network
    if cfg.train.lora is not None:
        add_lora(network, cfg.train.lora, model.lora_targets, cfg.seed)
    else:
        network.requires_grad_(True)
    if cfg.train.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    reference, old = _auxiliary_policies(cfg, objective, network, accelerator)
    cache = build_cache(cfg.train.reference, objective, accelerator)
    if cfg.train.compile:  # behind the references: a copy of a compiled block is not compiled
        compile_blocks(network)
    network.train()
    optimizer = build_optimizer(network, cfg.train, accelerator.device)
    trained = audit(network, optimizer, {"reference": reference, "old": old}, lora=cfg.train.lora is not None)
    policy, optimizer = accelerator.prepare(network, optimizer)
    ema = _build_ema(cfg, network, accelerator)
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
        cfg=cfg.train,
        seed=cfg.seed,
        folder=out,
        fingerprint={"seed": cfg.seed, "objective": cfg.objective.name, "parameters": _count(network)},
    )
    fit(training, lambda staging: export(training, staging / EXPORT, lora=cfg.train.lora is not None))
    if accelerator.is_main_process:
        finish(
            out,
            steps=cfg.train.steps,
            world=accelerator.num_processes,
            distributed=str(accelerator.distributed_type.value),
            zero_stage=zero_stage(accelerator),
            precision=cfg.train.precision,
            trained_parameters=trained,
        )
    for tracker in accelerator.trackers:  # not end_training: the processes go on, in a round
        tracker.finish()
    return out


def exported(out: Path, steps: int) -> Path:
    """The folder of the weights after the last step: an adapter, or a network."""
    return out / "checkpoints" / f"step-{steps:08d}" / EXPORT


def export(training: Training, folder: Path, *, lora: bool) -> None:
    """Write the trained weights (their moving average if there is one), gathered from all processes."""
    accelerator = training.accelerator
    bare = accelerator.unwrap_model(training.policy)
    parameters = trainable(bare)
    if training.ema is not None:
        training.ema.store(parameters)
        training.ema.copy_to(parameters)
    state = accelerator.get_state_dict(training.policy)
    if accelerator.is_main_process:
        (save_adapter if lora else save_network)(bare, state, folder)
    if training.ema is not None:
        training.ema.restore(parameters)


def _auxiliary_policies(
    cfg: TrainRun, objective: Objective, network: Any, accelerator: Accelerator
) -> tuple[AuxiliaryPolicy | None, AuxiliaryPolicy | None]:
    """The networks beside the policy that the objective needs: the reference, and the old policy.

    Where both are configured alike they are one, which is run once.
    """
    lora = cfg.train.lora
    reference = build_auxiliary("reference", cfg.train.reference, objective, network, accelerator, lora)
    if reference is not None and "old" in objective.needs and cfg.train.old == cfg.train.reference:
        return reference, reference
    return reference, build_auxiliary("old", cfg.train.old, objective, network, accelerator, lora)


def _build_ema(cfg: TrainRun, network: torch.nn.Module, accelerator: Accelerator) -> EMAModel | None:
    if not cfg.train.ema:
        return None
    if zero_stage(accelerator) == 3:
        raise ConfigError(
            "train.ema: ZeRO-3 shards the parameters it would average; use ZeRO-2, or train.ema=0"
        )
    ema = EMAModel(trainable(network), decay=cfg.train.ema, use_ema_warmup=True, power=0.75)
    accelerator.register_for_checkpointing(ema)
    return ema


def _check_model(cfg: TrainRun, model: SongModel) -> None:
    """What the configuration asks of the model, before anything is computed."""
    if cfg.train.inpaint is not None:
        require(model, Inpaints)
    parts = (*model.parts, CONTEXT)
    for part in cfg.train.dropout:
        if part not in parts:
            raise ConfigError(
                f"train.dropout: this model has no part {part!r}.{closest(part, parts)} Known: {', '.join(parts)}."
            )


def _already(out: Path, cfg: TrainRun) -> bool:
    manifest = out / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("steps", 0) >= cfg.train.steps


def _count(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
