"""Embeddings of prompts and plans by content: each is computed once, and kept in memory or on disk.

On disk they stay in the pages of their files, which are read when an embedding is used and can be given up again.

After all prompts are embedded, a model's encoders can be freed: prompts in the store still work.
"""

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffdpo.data.plans import plan_digest
from diffdpo.errors import DataError
from diffdpo.models.base import Covers, Plans, SongModel, require, supports
from diffdpo.runs import atomic_write
from diffdpo.types import Clip, Embedding, Plan, Prompt

NOT_CONTENT = ("id", "group")
"""Fields of a prompt that change no embedding."""
EMPTY = "__empty__"
"""Name of the placeholder tensor in the file of an embedding without tensors, which safetensors cannot hold."""


@dataclass
class EmbeddingStore:
    """Embeddings of one model."""

    model: SongModel
    folder: Path | None = None
    """Where embeddings are kept between runs, a file each, and mapped from there; None keeps them in memory."""
    memory: dict[str, Embedding] = field(default_factory=dict)

    def embed(self, prompt: Prompt) -> Embedding:
        """The embedding of a prompt. DataError if the model cannot encode the prompt."""
        key = prompt_digest(prompt)
        return self._get_or_compute(key, lambda: self.model.embed(prompt))

    def embed_plan(self, plan: Plan) -> Embedding:
        """The embedding of a plan. DataError if another planner made it."""
        if not supports(self.model, Covers):
            require(self.model, Plans)
        model: Any = self.model
        planners = (getattr(model, "planner", None), getattr(model, "cover_planner", None))
        if plan.planner not in planners:  # the model refuses it, also where an earlier run has cached it
            refusal: Embedding = model.embed_plan(plan)
            return refusal
        return self._get_or_compute(plan_digest(plan), lambda: model.embed_plan(plan))

    def _get_or_compute(self, key: str, compute: Any) -> Embedding:
        """From memory, from the folder, or computed; then mapped from the folder if there is one."""
        if key not in self.memory:
            path = self._path(key)
            if path is None:
                self.memory[key] = compute()
            else:
                if not path.is_file():
                    write_embedding(path, compute())
                self.memory[key] = read_embedding(path)
        return self.memory[key]

    def _path(self, key: str) -> Path | None:
        """The file of an embedding; its name holds the content and the identity of the encoders."""
        if self.folder is None:
            return None
        name = hashlib.sha256(f"{self.model.fingerprint}|{key}".encode()).hexdigest()
        return self.folder / f"{name}.safetensors"


def read_embedding(path: Path) -> Embedding:
    """An embedding mapped from its file; DataError if the file is damaged."""
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
    """Identity of a prompt's content: its fields, and the content of its recording rather than the path."""
    content = {f.name: getattr(prompt, f.name) for f in fields(prompt) if f.name not in NOT_CONTENT}
    content["style_audio"] = _recording_digest(prompt.style_audio)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _recording_digest(style_audio: str | Clip | None) -> str:
    if style_audio is None:
        return ""
    if isinstance(style_audio, Clip):
        header = f"{style_audio.sample_rate}|{style_audio.samples.shape}|".encode()
        return hashlib.sha256(header + style_audio.samples.tobytes()).hexdigest()
    try:
        return hashlib.sha256(Path(style_audio).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{style_audio}: cannot be read ({error.strerror})") from None
