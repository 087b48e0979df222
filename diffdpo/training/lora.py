"""LoRA on a network, with everything that peft's LoraConfig offers and training on preferences allows."""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig as PeftLora
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor

from diffdpo.errors import ConfigError, reason
from diffdpo.models.adapters import PEFT_KEYS, is_adaptable
from diffdpo.registry import closest
from diffdpo.torchao_import import quiet_torchao
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.types import Objective

INITS = (True, False, "gaussian", "orthogonal")
"""Starts of an adapter that leave the weights below it as they are."""


def add_lora(network: Any, lora: LoraConfig, targets: Sequence[str], seed: int) -> None:
    """Freeze the network and put adapters on the layers that `lora.targets`, else `targets`, match.

    Adapters start as the identity, unless `peft.init_lora_weights` says otherwise. ConfigError for a target that
    matches no linear layer or plain convolution, for what peft does not know or cannot do here, and for adapters
    that would change or train the weights below them.
    """
    patterns = list(targets if lora.targets is None else lora.targets)
    check_targets(network, patterns)
    network.requires_grad_(False)
    if getattr(network, "peft_config", None):
        return
    check_fields(network, lora, patterns)
    with torch.random.fork_rng(), quiet_torchao():
        torch.manual_seed(seed)
        try:
            network.add_adapter(peft_config(lora, patterns))
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            NotImplementedError,
            ImportError,
        ) as error:
            raise ConfigError(f"train.lora: peft cannot make this adapter ({reason(error)})") from None
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            raise ConfigError(
                f"train.lora.peft: {name} would be trained, which belongs to no adapter; leave bias, "
                "modules_to_save and trainable_token_indices out, or train all weights"
            )


def fuse_lora(network: Any) -> None:
    """Add adapters to their layers inside the second matrix product, not after it.

    peft scales and adds whole activations, which is memory traffic; here the rank's few columns are scaled, and the
    product accumulates onto the layer's output. Values and gradients differ by rounding alone. Layers on which it
    does not act (DoRA, dropout, several adapters, other precisions, no linear layer, an adapter with hooks, such as
    the strengths of a slider's rows) stay peft's.
    """
    for layer in network.modules():
        if type(layer) is LoraLinear and type(layer.base_layer) is torch.nn.Linear:
            layer.forward = MethodType(lora_forward, layer)


def lora_forward(
    layer: Any, x: Float[Tensor, "... input"], *args: Any, **kwargs: Any
) -> Float[Tensor, "... output"]:
    """A linear layer with its one plain adapter; in other cases as peft computes it."""
    if args or kwargs or not is_plain(layer, x):
        return type(layer).forward(layer, x, *args, **kwargs)
    (name,) = layer.active_adapters
    rows = x.flatten(0, -2)
    columns = layer.lora_A[name](rows) * layer.scaling[name]
    total = torch.addmm(layer.base_layer(rows), columns, layer.lora_B[name].weight.t())
    return total.unflatten(0, x.shape[:-1])


def is_plain(layer: Any, x: Tensor) -> bool:
    """Whether the layer acts now by one adapter of two matrices, without dropout, in the precision of its input."""
    if layer.disable_adapters or layer.merged or x.ndim < 2 or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant:
        return False
    factors = layer.lora_A[name], layer.lora_B[name]
    weights = factors[0].weight, factors[1].weight, layer.base_layer.weight
    return (
        factors[1].bias is None
        and not any(factor._forward_hooks or factor._forward_pre_hooks for factor in factors)
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and (torch.is_autocast_enabled(x.device.type) or all(weight.dtype == x.dtype for weight in weights))
    )


def check_targets(network: Any, patterns: Sequence[str]) -> None:
    """ConfigError for a pattern that matches no layer which can be adapted."""
    layers = [name for name, m in network.named_modules() if is_adaptable(m)]
    for target in patterns:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            suffixes = sorted({name.rsplit(".", 1)[-1] for name in layers})
            raise ConfigError(
                f"train.lora.targets: the network has no layer {target!r}.{closest(target, suffixes)} "
                f"It has {', '.join(suffixes)}."
            )


def check_fields(network: Any, lora: LoraConfig, patterns: Sequence[str]) -> None:
    """ConfigError for fields of peft's by which the base would change, or by which nothing could be merged."""
    init = lora.peft.get("init_lora_weights", True)
    if init not in INITS:
        raise ConfigError(
            f"train.lora.peft.init_lora_weights={init!r} changes the weights below the adapter, which are the "
            f"reference and the base of every export, or needs data; choose {', '.join(map(repr, INITS))}"
        )
    if lora.peft.get("lora_bias"):
        for name, layer in network.named_modules():
            is_target = any(name == target or name.endswith(f".{target}") for target in patterns)
            if is_target and is_adaptable(layer) and layer.bias is None:
                raise ConfigError(
                    f"train.lora.peft.lora_bias: {name} has no bias that the adapter's could be merged into"
                )


def peft_config(lora: LoraConfig, targets: list[str]) -> PeftLora:
    """The configuration as peft has it; ConfigError for a field that this peft has not."""
    for name in lora.peft:
        if name not in PEFT_KEYS:
            raise ConfigError(f"train.lora.peft: LoraConfig has no field {name!r}.{closest(name, PEFT_KEYS)}")
    return PeftLora(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, **lora.peft)


def check_dropout(cfg: TrainConfig, objective: Objective) -> None:
    """ConfigError for dropout inside the adapter where passes are compared with each other."""
    if cfg.lora is None or not cfg.lora.peft.get("lora_dropout"):
        return
    key = "train.lora.peft.lora_dropout"
    if objective.batch_kind in ("pair", "group") or {"reference", "old"} & objective.needs:
        raise ConfigError(
            f"{key}: every pass would draw a mask of its own, and margins, which are differences of passes, would "
            "be differences of masks; set it to 0 for this objective"
        )
    if cfg.split_backward:
        raise ConfigError(f"{key}: the two passes of train.split_backward would differ; set either to none")
