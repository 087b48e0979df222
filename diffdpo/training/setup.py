"""What is trained, before the loop: adapters, auxiliary policies, the optimiser."""

from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from diffdpo.errors import ConfigError
from diffdpo.models.adapters import ADAPTABLE as ADAPTABLE
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig
from diffdpo.training.lora import add_lora as add_lora
from diffdpo.training.optimizer import build_optimizer as build_optimizer
from diffdpo.training.references import AdapterOff, ErrorCache, FrozenCopy, MovingCopy
from diffdpo.training.step import AuxiliaryPolicy
from diffdpo.types import Objective

DTYPES = {"same": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def reference_kind(
    name: str, cfg: ReferenceConfig, lora: LoraConfig | None
) -> Literal["adapter_off", "frozen_copy", "ema", "synced"]:
    """The kind of an auxiliary policy, `auto` resolved. ConfigError for adapters off where there are none."""
    if cfg.kind == "auto":
        return "frozen_copy" if lora is None else "adapter_off"
    if cfg.kind == "adapter_off" and lora is None:
        raise ConfigError(f"train.{name}.kind=adapter_off needs train.lora; without adapters use frozen_copy")
    return cfg.kind


def build_auxiliary(
    name: Literal["reference", "old"],
    cfg: ReferenceConfig,
    objective: Objective,
    network: Any,
    accelerator: Accelerator,
    lora: LoraConfig | None,
) -> AuxiliaryPolicy | None:
    """The reference or the old policy, if the objective needs one; to be built before `accelerator.prepare`.

    A copy that follows the policy is registered with the accelerator and so part of every checkpoint.
    """
    if name not in objective.needs:
        return None
    kind = reference_kind(name, cfg, lora)
    if kind == "adapter_off":
        return AdapterOff(accelerator.unwrap_model)
    if kind == "frozen_copy":
        return FrozenCopy.take(network, accelerator.device, DTYPES[cfg.dtype], cfg.offload)
    schedule = {"decay": cfg.decay, "ramp": cfg.ramp} if kind == "ema" else {"every": cfg.every}
    auxiliary = MovingCopy.start(network, accelerator.device, accelerator.unwrap_model, **schedule)
    accelerator.register_for_checkpointing(auxiliary)
    return auxiliary


def build_auxiliaries(
    cfg: TrainConfig, objective: Objective, network: Any, accelerator: Accelerator
) -> tuple[AuxiliaryPolicy | None, AuxiliaryPolicy | None]:
    """The auxiliary policies that the objective needs: the reference, and the old policy.

    Where both are configured alike, one policy serves as both and runs once a step.
    """
    reference = build_auxiliary("reference", cfg.reference, objective, network, accelerator, cfg.lora)
    if reference is not None and "old" in objective.needs and cfg.old == cfg.reference:
        return reference, reference
    return reference, build_auxiliary("old", cfg.old, objective, network, accelerator, cfg.lora)


def build_ema(cfg: TrainConfig, network: torch.nn.Module, accelerator: Accelerator) -> EMAModel | None:
    """The moving average of the trained weights, if one is to be exported."""
    if not cfg.ema:
        return None
    weights = [p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in trainable(network)]
    ema = EMAModel(weights, decay=cfg.ema, use_ema_warmup=True, power=0.75)
    accelerator.register_for_checkpointing(ema)
    return ema


def build_cache(cfg: ReferenceConfig, objective: Objective, accelerator: Accelerator) -> ErrorCache | None:
    """The cache of the reference's errors, if `cached_draws` asks for one."""
    if not cfg.cached_draws or "reference" not in objective.needs:
        return None
    needs = sorted(objective.needs - {"reference"})
    if needs:
        raise ConfigError(
            f"train.reference.cached_draws remembers errors, but this objective needs {', '.join(needs)} too; "
            "set it to 0"
        )
    if objective.batch_kind != "pair":
        raise ConfigError("train.reference.cached_draws works on pairs; set it to 0")
    cache = ErrorCache(cfg.cached_draws, {})
    accelerator.register_for_checkpointing(cache)
    return cache


def trainable(network: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
