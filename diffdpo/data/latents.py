"""Latents on disk: one safetensors file a song, read in slices."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffdpo.errors import DataError
from diffdpo.runs import atomic_write

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


def read_tensor(path: Path, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """A slice along the first axis of one tensor of a file, as float32."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; was it moved? Run its stage again")
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice(name)[start:stop].float()
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged ({reason}); delete it and run its stage again") from None
