"""Context parallelism in training: processes in groups of `train.context_parallel`, each of which shares its songs.

The processes of a group have the same examples and the same noise, see all of each song's velocity, and so have the
same loss; the network's work between is divided over frames, see `diffdpo.models.frame_shards`.
"""

from typing import Any

import torch
from accelerate import Accelerator

from diffdpo.errors import ConfigError
from diffdpo.models.base import DividesFrames, SongModel, require
from diffdpo.models.frame_shards import FrameShards
from diffdpo.training.config import TrainConfig


def check_context(cfg: TrainConfig, model: SongModel) -> None:
    """ConfigError or DataError for a run that cannot divide its songs over processes; `check_strategy` says which
    backends cannot."""
    size = cfg.context_parallel
    if size == 1:
        return
    if cfg.compile:
        raise ConfigError(f"train.context_parallel={size}: not with train.compile; leave one of them out")
    if cfg.lora is not None and cfg.lora.peft.get("lora_dropout"):
        raise ConfigError(
            f"train.context_parallel={size}: train.lora.peft.lora_dropout draws otherwise in every process; "
            "leave it out"
        )
    require(model, DividesFrames)
    divides: Any = model
    divides.check_division(size)


def data_place(cfg: TrainConfig, rank: int, world: int) -> tuple[int, int]:
    """Which part of the data is that of a process, of how many parts: the number of its group, and the groups."""
    return rank // cfg.context_parallel, world // cfg.context_parallel


def build_shards(cfg: TrainConfig, accelerator: Accelerator) -> FrameShards | None:
    """This process's group, of neighbours; None where each process has songs of its own. For all at once."""
    if cfg.context_parallel == 1:
        return None
    group, _ = torch.distributed.new_subgroups(cfg.context_parallel)
    return FrameShards(
        group=group, rank=accelerator.process_index % cfg.context_parallel, size=cfg.context_parallel
    )
