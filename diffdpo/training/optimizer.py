"""The optimiser: AdamW, with its two moments in fp32 or in 8 bits, on weights in fp32 or bf16."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from diffdpo.errors import ConfigError
from diffdpo.torchao_import import import_torchao, require_package
from diffdpo.training.bf16_optimizer import FUSED_DEVICES, Bf16AdamW
from diffdpo.training.config import TrainConfig

BLOCK = 256
"""Numbers of a moment that share a scale in 8 bits."""
MIN_NUMBERS = 4096
"""Smaller tensors keep their moments in full, and so do those that are no whole number of blocks."""
UPDATE_COPIES = {"adamw": 0.0, "adamw_8bit": 13.3, "bf16_master": 1.0, "bf16_stochastic": 3.5}
"""What the update of a tensor holds beside its moments, in fp32 copies of it: nothing where it is fused; in 8
bits where the update is not compiled."""
STATE_BYTES = {"fp32": 8, "bf16_master": 12, "bf16_stochastic": 8}
"""Bytes of AdamW's state for a number of each kind of weights: two moments in fp32, and the master copy."""
CODEBOOK_BYTES = 4 * 256
"""What a moment in 8 bits keeps to look its 256 values up."""


def build_optimizer(
    network: Any, cfg: TrainConfig, device: torch.device, seed: int = 0, *, has_scaler: bool = False
) -> torch.optim.Optimizer:
    """AdamW; matrices decay, biases and norms do not. In fp32 it is fused on GPUs and CPUs.

    `seed` is that of stochastic rounding. With the loss scaler of fp16 it is not fused: a fused one skips a step
    that overflowed inside itself, and accelerate takes it for a step.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (cfg.betas[0], cfg.betas[1])
    if cfg.optimizer == "adamw_8bit":
        return _adamw_8bit(groups, cfg.learning_rate, betas, device)
    if cfg.weights != "fp32":
        has_master = cfg.weights == "bf16_master"
        return Bf16AdamW(groups, lr=cfg.learning_rate, betas=betas, has_master=has_master, seed=seed)
    is_fused = device.type in FUSED_DEVICES and not has_scaler
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=betas, fused=is_fused)


def check_weight_precision(cfg: TrainConfig) -> None:
    """ConfigError for weights in bf16 that this configuration cannot have; `check_strategy` says what a backend
    cannot."""
    key = f"train.weights={cfg.weights}"
    if cfg.weights == "fp32":
        return
    if cfg.lora is not None:
        raise ConfigError(
            f"{key}: adapters are trained in fp32; for the weights below them set train.base=bf16"
        )
    if cfg.precision != "bf16":
        raise ConfigError(f"{key}: weights in bf16 compute in bf16; set train.precision=bf16")
    if cfg.optimizer != "adamw":
        raise ConfigError(f"{key}: train.optimizer={cfg.optimizer} is for weights in fp32; use adamw")


def _adamw_8bit(
    groups: list[dict[str, Any]], rate: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.Optimizer:
    """torchao's AdamW with moments in 8 bits, in blocks with a scale each (Dettmers et al. 2022).

    It compiles its update for every shape, which needs a compiler and is slow at first; a CPU runs it uncompiled.
    """
    require_package("torchao", "train.optimizer=adamw_8bit")
    optimizer: Any = import_torchao("torchao.optim").AdamW8bit(groups, lr=rate, betas=betas)
    if device.type == "cpu":
        optimizer.step = _eager_step(optimizer.step)
    return optimizer


def _eager_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step whose compiled functions run as they are written."""

    @functools.wraps(step)
    def run_step(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return step(*args, **kwargs)

    return run_step


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of all groups, in its tensor where an optimiser keeps it in one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moment_bytes(parameters: Iterable[Tensor], cfg: TrainConfig) -> int:
    """Bytes of AdamW's state for these parameters: both moments, and master copies."""
    if cfg.weights != "fp32":
        return sum(STATE_BYTES[cfg.weights] * p.numel() for p in parameters)
    return sum(2 * _moment_bytes(p, cfg.optimizer == "adamw_8bit") for p in parameters)


def _moment_bytes(parameter: Tensor, is_8bit: bool) -> int:
    numbers = parameter.numel()
    if not is_8bit or numbers < MIN_NUMBERS or numbers % BLOCK:
        return numbers * parameter.element_size()
    return numbers + 4 * (numbers // BLOCK) + CODEBOOK_BYTES
