"""The encoders of Stable Audio 3's prompts: T5Gemma for the text, Fourier features for the duration."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.errors import CheckpointError, DataError, reason

TOKENS = 256
"""Text tokens of the context; a prompt with more is refused."""


@runtime_checkable
class PromptEncoder(Protocol):
    """Text and duration to tensors; nothing is loaded before the first call."""

    def embed_text(self, text: str, name: str) -> Float[Tensor, "token text"]: ...

    def embed_duration(self, seconds: float) -> Float[Tensor, " duration"]: ...

    def to(self, device: str) -> None: ...


@dataclass(kw_only=True, eq=False)
class T5GemmaPrompts:
    """T5Gemma's encoder and the duration embedder, loaded on first use."""

    location: str
    """Folder or hub id of the text encoder and, unless `tokenizer` is another, of its tokenizer."""
    tokenizer_location: str
    subfolder: str = ""
    """Folder inside a hub id."""
    build_duration: Callable[[], Any]
    """Builds diffusers' StableAudio3DurationEmbedder."""
    device: str = "cpu"
    modules: dict[str, Any] = field(default_factory=dict, repr=False)

    def embed_text(self, text: str, name: str) -> Float[Tensor, "token text"]:
        """The hidden states of one text, without padding. DataError, with the `name` of the prompt, for a text of
        more tokens than the context holds."""
        tokenizer, encoder = self._module("tokenizer"), self._module("encoder")
        ids = tokenizer(text, truncation=False, verbose=False).input_ids
        limit = min(TOKENS, tokenizer.model_max_length)
        if len(ids) > limit:
            raise DataError(
                f"prompt {name!r}: its text has {len(ids)} tokens, this model takes {limit}; shorten it"
            )
        if not ids:
            return torch.zeros(0, encoder.config.encoder.hidden_size)
        tokens = torch.tensor([ids], device=self.device)
        with torch.no_grad():
            return encoder(tokens, attention_mask=torch.ones_like(tokens))[0][0].float().cpu()

    def embed_duration(self, seconds: float) -> Float[Tensor, " duration"]:
        """The embedding of a length; lengths beyond those of training are the longest one's."""
        embedder = self._module("duration")
        with torch.no_grad():
            return embedder(torch.tensor([seconds], device=self.device))[0].float().cpu()

    def to(self, device: str) -> None:
        """Move what is loaded, and what will be, to a device."""
        self.device = device
        for name in ("encoder", "duration"):
            if name in self.modules:
                self.modules[name].to(device)

    def _module(self, name: str) -> Any:
        if name not in self.modules:
            build = {"tokenizer": self._tokenizer, "encoder": self._encoder, "duration": self.build_duration}
            module = build[name]()
            self.modules[name] = module if name == "tokenizer" else module.to(self.device).eval()
        return self.modules[name]

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return _read(
            self.tokenizer_location,
            lambda source: AutoTokenizer.from_pretrained(source, subfolder=self.subfolder),
        )

    def _encoder(self) -> Any:
        from transformers import AutoConfig
        from transformers import T5GemmaEncoderModel as Encoder

        model_class: Any = Encoder

        def read(source: str) -> Any:
            config = AutoConfig.from_pretrained(source, subfolder=self.subfolder)
            if config.model_type != "t5gemma":
                raise ValueError(f"a {config.model_type}, not a t5gemma")
            config.is_encoder_decoder = False
            encoder, info = model_class.from_pretrained(
                source, config=config, subfolder=self.subfolder, output_loading_info=True
            )
            if info["missing_keys"]:
                raise ValueError(f"weights are missing, first {sorted(info['missing_keys'])[0]}")
            return encoder.requires_grad_(False)

        return _read(self.location, read)


def _read(source: str, read: Callable[[str], Any]) -> Any:
    """A part of transformers from a folder or the hub; CheckpointError in one line where it cannot be read."""
    try:
        return read(source)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: no text encoder of Stable Audio 3 here ({reason(error)}); give the folder of "
            "t5gemma-b-b-ul2 as model.args.text_encoder"
        ) from None


def text_files(location: str) -> list[Path]:
    """The files of a text encoder's folder, whose content identifies it; [] for a hub id."""
    folder = Path(location)
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".model", ".bin")
    )
