"""The base below the adapters in 16, 8 or 4 bits: the weights of a network's blocks, everything else as it is.

Adapters, their gradients and the optimiser keep their precision. The reference is the same base with the adapters
off, so that the first margins are zero.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from diffdpo.errors import ConfigError
from diffdpo.models.adapter_config import block_names
from diffdpo.torchao_import import import_torchao, require_package
from diffdpo.training.bf16_base import store_bf16
from diffdpo.training.config import TrainConfig
from diffdpo.weight_files import read_tensors

ADAPTER_STATE = "adapter.safetensors"
"""What a checkpoint keeps of a network whose base is quantised, since the base does not change."""
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
"""What a precision of the base needs, where that is not part of torch."""


def quantize_base(network: Any, cfg: TrainConfig, accelerator: Accelerator) -> None:
    """Quantise the linear layers of the network's blocks; nothing for base=full. To be called before adapters.

    ConfigError without adapters, and without the package. Sharding such weights is refused by `check_strategy`.
    """
    if cfg.base == "full":
        return
    check_base(cfg, accelerator)
    if not block_names(network):
        raise ConfigError(
            f"train.base={cfg.base}: {type(network).__name__} names no _repeated_blocks; use full"
        )
    quantize_layers(network, block_layers(network), cfg.base)


def quantize_layers(network: Any, layers: list[str], base: str) -> None:
    """Quantise the linear layers of these names, in their places."""
    {"bf16": store_bf16, "int8": _to_int8, "nf4": _to_nf4}[base](network, layers)


def check_base(cfg: TrainConfig, accelerator: Accelerator) -> None:
    """ConfigError for a precision of the base that this run cannot have."""
    key = f"train.base={cfg.base}"
    if cfg.lora is None:
        raise ConfigError(f"{key}: {frozen_text(cfg)}")
    if cfg.base == "nf4" and accelerator.device.type != "cuda":
        raise ConfigError(f"{key}: bitsandbytes needs a CUDA device; use int8")
    require_base(cfg)


def frozen_text(cfg: TrainConfig) -> str:
    """Why a base in this precision needs adapters, and what to set."""
    if cfg.base == "bf16":
        return "this is the frozen base below adapters; set train.lora.rank, or train.weights=bf16_master"
    return "weights in few bits cannot be trained; set train.lora.rank, or base=full"


def require_base(cfg: TrainConfig) -> None:
    """ConfigError where the package for this precision of the base is not installed."""
    if cfg.base in PACKAGES:
        require_package(PACKAGES[cfg.base], f"train.base={cfg.base}")


def block_layers(network: Any) -> list[str]:
    """Names of the linear layers inside the blocks that a network repeats, adapters left out."""
    blocks = block_names(network)
    return [
        name
        for name, module in network.named_modules()
        if type(module) is torch.nn.Linear
        and ".lora_" not in name
        and any(name.startswith(f"{block}.") for block in blocks)
    ]


def _to_int8(network: Any, layers: Sequence[str]) -> None:
    """A whole number of 8 bits a weight, and a scale for each output (torchao's weight-only scheme)."""
    torchao = import_torchao("torchao.quantization")
    names = frozenset(layers)
    is_layer: Callable[[Any, str], bool] = lambda module, name: name in names  # noqa: E731
    torchao.quantize_(network, torchao.Int8WeightOnlyConfig(), filter_fn=is_layer)


def _to_nf4(network: Any, layers: Sequence[str]) -> None:
    """Four bits a weight in blocks of 64, QLoRA's normal floats. Not measured by us."""
    from bitsandbytes.nn import Linear4bit

    for name in layers:
        owner, _, leaf = name.rpartition(".")
        layer = network.get_submodule(name)
        linear = Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, quant_type="nf4",
            compute_dtype=torch.bfloat16,
        )  # fmt: skip
        linear.load_state_dict(layer.state_dict())
        setattr(network.get_submodule(owner), leaf, linear)


def keep_adapter_only(accelerator: Accelerator) -> None:
    """Let checkpoints hold the trained tensors alone: a quantised base never changes."""

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            save_file(adapter_state(accelerator.unwrap_model(models[0])), Path(folder) / ADAPTER_STATE)

    def load(models: list[Any], folder: str) -> None:
        own = dict(accelerator.unwrap_model(models.pop()).named_parameters())
        with torch.no_grad():
            for name, tensor in read_tensors(Path(folder) / ADAPTER_STATE).items():
                own[name].copy_(tensor)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def keep_base_local(network: torch.nn.Module) -> None:
    """Let DDP leave the frozen weights where they are: quantised ones cannot be broadcast, and every process reads
    the same. To be called with the adapters in place, before the network is prepared."""
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, frozen)


def adapter_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that are trained, by name."""
    return {name: p.detach().contiguous() for name, p in network.named_parameters() if p.requires_grad}
