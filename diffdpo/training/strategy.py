"""The backends of training: plain processes, DistributedDataParallel and DeepSpeed, with what is special of
each."""

import os
from collections.abc import Sequence

from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from diffdpo.data.datasets.stream import accumulation
from diffdpo.devices import choose_device, is_cpu_forced
from diffdpo.errors import ConfigError
from diffdpo.registry import pick
from diffdpo.training.config import TrainConfig, data_world


def build_accelerator(cfg: TrainConfig, logging_dir: str) -> Accelerator:
    """The accelerator of the environment `accelerate launch` made, or of one process."""
    cpu = choose_device().type == "cpu"
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    handlers = (
        [InitProcessGroupKwargs(backend="gloo")] if cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else []
    )
    if cfg.precision == "fp16" and cpu:
        raise ConfigError("train.precision=fp16 needs a GPU; use bf16 or no")
    _check_trackers(cfg.trackers)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rounds = accumulation(cfg.global_batch, cfg.per_device, data_world(cfg, world))
    AcceleratorState._reset_state()  # a process may train more than once, each time with another precision
    accelerator = Accelerator(
        cpu=is_cpu_forced(),
        mixed_precision=cfg.precision,
        gradient_accumulation_steps=rounds,
        kwargs_handlers=handlers,
        log_with=list(cfg.trackers) or None,
        project_dir=logging_dir,
    )
    assert accelerator.num_processes == world, "accelerate sees another number of processes than was launched"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = cfg.per_device
        settings["gradient_accumulation_steps"] = rounds
        settings["train_batch_size"] = cfg.global_batch
        settings["gradient_clipping"] = cfg.grad_clip
    return accelerator


def _check_trackers(names: Sequence[str]) -> None:
    """accelerate passes over a tracker it does not have; a run without its curves should not start."""
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        pick("tracker", LOGGER_TYPE_TO_CLASS, name)
        if name not in available:
            raise ConfigError(f"train.trackers: {name} is not installed; pip install {name}, or leave it out")


def is_deepspeed(accelerator: Accelerator) -> bool:
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def zero_stage(accelerator: Accelerator) -> int:
    """0 without DeepSpeed."""
    return int(accelerator.state.deepspeed_plugin.zero_stage) if is_deepspeed(accelerator) else 0
