"""The embeddings of a prepared song: one for each variant of its description and each window of time.

A song's file keeps each distinct tensor once, since most windows share most tensors, and an index from
(variant, window) to the tensors of its embedding.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffdpo.errors import DataError
from diffdpo.runs import atomic_write
from diffdpo.types import Embedding

INDEX = "index"
"""Key of the index in the file's metadata: for each variant and window a mapping from names to tensors of the
file."""


def write_song_embeddings(path: Path, embeddings: Sequence[Sequence[Embedding]]) -> None:
    """Write the embeddings of a song, by variant and window, bit for bit; complete or not at all."""
    tensors: dict[str, Tensor] = {}
    index = [
        [{name: _store(tensors, tensor) for name, tensor in window.items()} for window in variant]
        for variant in embeddings
    ]
    content = tensors or {"empty": torch.zeros(0)}
    atomic_write(path, save(content, metadata={INDEX: json.dumps(index, sort_keys=True)}))


def _store(tensors: dict[str, Tensor], tensor: Tensor) -> str:
    """Add a tensor unless an equal tensor is present; returns its key."""
    plain = tensor.detach().contiguous().clone()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    key = hashlib.blake2b(
        f"{plain.dtype}|{tuple(plain.shape)}|".encode() + content, digest_size=12
    ).hexdigest()
    tensors[key] = plain
    return key


class SongEmbeddings:
    """The embeddings of one prepared song, read from its file one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file; run `diffdpo prepare` again")
        try:
            with safe_open(path, "pt") as file:
                self.index: list[list[dict[str, Any]]] = json.loads((file.metadata() or {})[INDEX])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(
                f"{path}: holds no embeddings of a song ({error}); prepare the song again"
            ) from None

    @property
    def variants(self) -> int:
        """Number of descriptions of the song."""
        return len(self.index)

    @property
    def windows(self) -> int:
        """Number of windows of equal length that the song is divided into."""
        return len(self.index[0])

    def read(self, variant: int, window: int) -> Embedding:
        """The embedding of one variant of one window."""
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(key) for name, key in self.index[variant][window].items()}
