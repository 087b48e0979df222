"""The encoders of Stable Audio Open's prompts: T5 for the text, Fourier features for start and end."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffdpo.errors import CheckpointError, DataError, reason
from diffdpo.types import Embedding


@dataclass(kw_only=True, eq=False)
class T5Prompts:
    """T5's encoder and diffusers' StableAudioProjectionModel, from a pipeline's folder, loaded on first use."""

    folder: Path
    device: str = "cpu"
    modules: dict[str, Any] = field(default_factory=dict, repr=False)

    def embed(self, text: str, seconds: float, limit: int, name: str) -> Embedding:
        """Tokens of one text without padding, and the tokens of its start, 0, and end. DataError, with the
        `name` of the prompt, for a text of more than `limit` tokens."""
        if not self.modules:
            self.modules = self._load()
        ids = self.modules["tokenizer"](text, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            raise DataError(
                f"prompt {name!r}: its text has {len(ids)} tokens, this model takes {limit}; shorten it"
            )
        tokens = torch.tensor([ids], device=self.device, dtype=torch.long)
        start, end = torch.tensor([[0.0], [float(seconds)]], device=self.device)
        with torch.no_grad():
            states = self.modules["encoder"](tokens, attention_mask=torch.ones_like(tokens))[0]
            projected = self.modules["projection"](states, start, end)
        places = [projected.seconds_start_hidden_states[0], projected.seconds_end_hidden_states[0]]
        return {
            "text": projected.text_hidden_states[0].float().cpu(),
            "seconds": torch.cat(places).float().cpu(),
        }

    def to(self, device: str) -> None:
        """Move what is loaded, and what will be, to a device."""
        self.device = device
        for name, module in self.modules.items():
            if name != "tokenizer":
                module.to(device)

    def _load(self) -> dict[str, Any]:
        from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
        from transformers import AutoTokenizer, T5EncoderModel

        encoder_class: Any = T5EncoderModel
        try:
            return {
                "tokenizer": AutoTokenizer.from_pretrained(self.folder / "tokenizer"),
                "encoder": encoder_class.from_pretrained(self.folder / "text_encoder").to(self.device).eval(),
                "projection": StableAudioProjectionModel.from_pretrained(self.folder / "projection_model")
                .to(self.device)
                .eval(),
            }
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.folder}: no encoders of Stable Audio Open here ({reason(error)})"
            ) from None
