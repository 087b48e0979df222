"""Latents on disk: one safetensors file a song, read in slices."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffdpo.errors import DataError, reason
from diffdpo.runs import atomic_write

T = TypeVar("T")
LATENT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_latents(path: Path, latents: Float[Tensor, "frame channel"], **extra: Tensor) -> None:
    """Write latents and extra tensors of a song as one file, complete or not at all."""
    tensors = {"latents": latents.contiguous(), **{k: v.contiguous() for k, v in extra.items()}}
    atomic_write(path, save(tensors))


def read_latents(path: Path, start: int = 0, stop: int | None = None) -> Float[Tensor, "frame channel"]:
    """Latents of the frames start … stop as float32. DataError if the file is missing, damaged or holds a NaN."""
    latents = read_tensor(path, "latents", start, stop)
    if not torch.isfinite(latents).all():
        raise DataError(f"{path}: holds latents that are not numbers; delete it and run its stage again")
    return latents


def check_latents(paths: Iterable[Path], channels: int) -> None:
    """DataError for the first file that is missing, damaged or of another width; only headers are read."""
    for path in paths:
        check_width(path, _open(path, lambda file: file.get_slice("latents").get_shape()), channels)


def check_width(location: str | Path, shape: Sequence[int], channels: int) -> None:
    """DataError unless a shape is [frame, channel] with as many channels as the model's latents have."""
    if len(shape) != 2 or shape[1] != channels:
        width = f"{shape[1]} channels" if len(shape) == 2 else f"shape {list(shape)}"
        raise DataError(
            f"{location}: latents of {width}, this model's have {channels} channels; train with the model that "
            "made them"
        )


def read_tensor(path: Path, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """A slice along the first axis of one tensor of a file, as float32."""
    return _open(path, lambda file: file.get_slice(name)[start:stop].float())


def _open(path: Path, read: Callable[[Any], T]) -> T:
    """What is read from a file; DataError if the file is missing or damaged."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; was it moved? Run its stage again")
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({reason(error)}); delete it and run its stage again") from None
