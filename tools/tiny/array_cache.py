"""Arrays and latents kept in NPZ files, so that the tools of the tiny model compute them once."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffdpo.runs import atomic_write

Latents = list[tuple[str, torch.Tensor]]
"""Latents [frame, channel], each with its cluster: the song or the prompt that they come from."""


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays to an NPZ file in one atomic step."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    atomic_write(path, content.getvalue())


def cached_arrays(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The arrays of an NPZ file, which `make` computes if the file is missing."""
    if not path.is_file():
        write_arrays(path, **make())
    with np.load(path) as arrays:
        return dict(arrays)


def cached_latents(path: Path, make: Callable[[], Latents]) -> Latents:
    """The latents of an NPZ file, which `make` computes if the file is missing."""

    def pack() -> dict[str, np.ndarray]:
        latents = make()
        return {
            "clusters": np.array([cluster for cluster, _ in latents]),
            "lengths": np.array([len(z) for _, z in latents]),
            "latents": torch.cat([z for _, z in latents]).numpy(),
        }

    arrays = cached_arrays(path, pack)
    parts = torch.from_numpy(arrays["latents"]).split(arrays["lengths"].tolist())
    return list(zip(arrays["clusters"].tolist(), parts, strict=True))
