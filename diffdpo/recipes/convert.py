"""The command `convert`: DiffRhythm checkpoints between published layouts and our folders, bit for bit.

Adapters are merged, or written beside the untouched network. Only another precision and merging change a bit.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffdpo.errors import ConfigError
from diffdpo.models.adapters import (
    ADAPTER,
    check_soup,
    merge_adapter,
    parse_adapters,
    read_adapter,
    write_adapter,
)
from diffdpo.models.checkpoints import save_network
from diffdpo.models.diffrhythm.checkpoints import Checkpoint, read_network, save_published
from diffdpo.models.diffrhythm.published import N_HEADS, NETWORK_PREFIX
from diffdpo.weight_files import assign

FILES = (".pt", ".safetensors")
CONVERSION_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The source, the target and the changes of a conversion."""

    source: str
    """Anything a model's `checkpoint` may be."""
    target: Path
    """A file ending in .pt (the published `cfm_model.pt`) or .safetensors (published names), or a folder."""
    release: str = ""
    ema: bool = False
    adapter: str = ""
    keep_adapter: bool = False
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"


def convert(settings: Conversion) -> None:
    """Write the target, complete or not at all. UserError says why nothing was written."""
    is_published = settings.target.suffix in FILES
    adapters = parse_adapters(settings.adapter)
    check_target(settings, adapters, settings.target.parent if is_published else settings.target)
    checkpoint = read_network(settings.source, release=settings.release, ema=settings.ema)
    network = checkpoint.build()
    if is_published and network.config.num_attention_heads != N_HEADS:
        raise ConfigError(
            f"{settings.source}: has {network.config.num_attention_heads} attention heads; the published code "
            f"always builds {N_HEADS}, so no published file can hold it"
        )
    state = checkpoint.state if settings.keep_adapter else merge_state(checkpoint, adapters)
    state = {name: state[name] for name in network.state_dict()}  # in the published order
    if settings.dtype != "keep":
        for name in list(state):  # one by one: the old tensor goes when the new one is there
            state[name] = state[name].to(CONVERSION_DTYPES[settings.dtype])
    partial_path = settings.target.with_name(f".{settings.target.stem}.partial{settings.target.suffix}")
    clear(partial_path)
    try:
        if is_published:
            settings.target.parent.mkdir(parents=True, exist_ok=True)
            save_published(state, partial_path)
        else:
            save_network(network, state, partial_path)
        if settings.keep_adapter:
            tensors, config = read_adapter(adapters[0][0])
            prefix, folder = (NETWORK_PREFIX, settings.target.parent) if is_published else ("", partial_path)
            write_adapter({prefix + name: tensor for name, tensor in tensors.items()}, config, folder)
        partial_path.rename(settings.target)
    finally:
        clear(partial_path)


def check_target(settings: Conversion, adapters: Sequence[tuple[Path, float]], folder: Path) -> None:
    """ConfigError if a file would be overwritten, or if the adapters cannot be kept as they are."""
    if settings.target.exists():
        raise ConfigError(f"{settings.target}: exists; remove it or choose another target")
    if settings.keep_adapter and len(adapters) != 1:
        raise ConfigError(f"--keep-adapter keeps one adapter, got {len(adapters)}; merge them instead")
    if settings.keep_adapter and adapters[0][1] != 1:
        raise ConfigError("--keep-adapter keeps an adapter as it is; merge it to give it a weight")
    if settings.keep_adapter and (folder / ADAPTER).exists():
        raise ConfigError(f"{folder / ADAPTER}: exists; remove it or choose another target")


def clear(path: Path) -> None:
    """Delete what an interrupted conversion left behind."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def merge_state(checkpoint: Checkpoint, adapters: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """The weights with adapters merged in fp32 and rounded back; without an adapter, the file's own tensors."""
    if not adapters:
        return checkpoint.state
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.state.items()}
    network = checkpoint.build()
    assign(network, checkpoint.state, checkpoint.location, torch.float32)
    check_soup(adapters)
    for folder, weight in adapters:
        merge_adapter(network, folder, weight)
    state = dict(network.state_dict())
    del network
    for name, dtype in dtypes.items():
        state[name] = state[name].detach().to(dtype)
    return state
