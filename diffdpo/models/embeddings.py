"""Embeddings of prompts and plans by content: each is computed once, in memory and, if wanted, on disk.

With all prompts embedded, a model's encoders can be freed: prompts that are in the store still work.
"""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffdpo.errors import DataError
from diffdpo.models.base import Plans, SongModel, require
from diffdpo.runs import atomic_write
from diffdpo.types import Clip, Embedding, Plan, Prompt

NOT_CONTENT = ("id", "group")
"""Fields of a prompt that change no embedding."""
EMPTY = "__empty__"
"""The tensor that stands in a file for an embedding without tensors, which safetensors cannot hold."""


@dataclass
class EmbeddingStore:
    """Embeddings of one model."""

    model: SongModel
    folder: Path | None = None
    """Where embeddings are kept between runs, a file each; None keeps them in memory only."""
    memory: dict[str, Embedding] = field(default_factory=dict)

    def embed(self, prompt: Prompt) -> Embedding:
        """The embedding of a prompt. DataError if the model does not understand it."""
        key = prompt_digest(prompt)
        return self._stored(key, lambda: self.model.embed(prompt))

    def embed_plan(self, plan: Plan) -> Embedding:
        """The embedding of a plan. DataError if another planner made it."""
        require(self.model, Plans)
        model: Any = self.model
        return self._stored(plan_digest(plan), lambda: model.embed_plan(plan))

    def _stored(self, key: str, compute: Any) -> Embedding:
        """From memory, from the folder, or computed; then kept in both."""
        if key not in self.memory:
            path = self._path(key)
            if path is not None and path.is_file():
                self.memory[key] = read_embedding(path)
            else:
                self.memory[key] = compute()
                if path is not None:
                    write_embedding(path, self.memory[key])
        return self.memory[key]

    def _path(self, key: str) -> Path | None:
        """The file of an embedding; its name holds the content and the identity of the encoders."""
        if self.folder is None:
            return None
        name = hashlib.sha256(f"{self.model.fingerprint}|{key}".encode()).hexdigest()
        return self.folder / f"{name}.safetensors"


def read_embedding(path: Path) -> Embedding:
    """An embedding from its file; DataError if it is damaged."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it") from None
    return {name: tensor for name, tensor in tensors.items() if name != EMPTY}


def write_embedding(path: Path, embedding: Embedding) -> None:
    """An embedding as a file, bit for bit. Views are copied, since safetensors refuses shared memory."""
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in embedding.items()}
    atomic_write(path, save(tensors or {EMPTY: torch.zeros(0)}))


def prompt_digest(prompt: Prompt) -> str:
    """Identity of what a prompt says: its fields, and the content of its recording rather than its path."""
    content = {f.name: getattr(prompt, f.name) for f in fields(prompt) if f.name not in NOT_CONTENT}
    content["style_audio"] = _recording_digest(prompt.style_audio)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _recording_digest(recording: str | Clip | None) -> str:
    if recording is None:
        return ""
    if isinstance(recording, Clip):
        header = f"{recording.sample_rate}|{recording.samples.shape}|".encode()
        return hashlib.sha256(header + recording.samples.tobytes()).hexdigest()
    try:
        return hashlib.sha256(Path(recording).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{recording}: cannot be read ({error.strerror})") from None


def plan_digest(plan: Plan) -> str:
    """Identity of a plan: its planner and its tensors."""
    digest = hashlib.sha256(plan.planner.encode())
    for name in sorted(plan.tensors):
        tensor = plan.tensors[name].contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
