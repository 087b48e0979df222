"""The encoders around ACE-Step 1.5's network: texts, lyrics, timbre and audio codes to the tensors of an embedding.

The text encoder is called without an attention mask, as published, so one prompt is encoded at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from diffdpo.errors import CheckpointError, DataError, reason
from diffdpo.models.ace_step.layouts import ORIGINAL_WEIGHTS, AceStepFolder, PartWeights, read_shards
from diffdpo.models.ace_step.text import LYRIC_TOKENS, TEXT_TOKENS, PromptTexts
from diffdpo.models.checkpoints import CONFIG_FILE, read_config
from diffdpo.weight_files import assign

QWEN_TOKENIZER = "tokenizer.json"


@dataclass(eq=False, kw_only=True)
class AceStepEncoders:
    """The text encoder, the condition encoder and, for audio codes, the quantizer and the detokenizer."""

    tokenizer: Tokenizer
    text: Any
    """A Qwen3 of transformers."""
    condition: Any
    quantizer: Any | None = None
    detokenizer: Any | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """All networks."""
        parts = (self.text, self.condition, self.quantizer, self.detokenizer)
        return [part for part in parts if part is not None]

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.text.parameters()).device
        return device

    @torch.no_grad()
    def embed_texts(self, texts: PromptTexts, prompt_id: str) -> list[Float[Tensor, "token width"]]:
        """The projected hidden states of each task's text."""
        ids = [self._ids(text, TEXT_TOKENS, "text", prompt_id) for text in texts.tasks]
        return [
            self.condition.text_projector(self.text(input_ids=row).last_hidden_state)[0].float().cpu()
            for row in ids
        ]

    @torch.no_grad()
    def embed_lyrics(self, texts: PromptTexts, prompt_id: str) -> Float[Tensor, "token width"]:
        """Lyrics go as token embeddings through an encoder of their own."""
        ids = self._ids(texts.lyrics, LYRIC_TOKENS, "lyrics", prompt_id)
        tokens = self.text.get_input_embeddings()(ids)
        encode = self.condition.lyric_encoder
        states: Tensor = encode(inputs_embeds=tokens, attention_mask=torch.ones_like(ids))
        return states[0].float().cpu()

    @torch.no_grad()
    def embed_timbre(self, latents: Float[Tensor, "frame channel"]) -> Float[Tensor, "1 width"]:
        """The token of a reference's latents, or of those of silence."""
        order = torch.zeros(1, dtype=torch.long, device=self.device)
        token, _ = self.condition.timbre_encoder(latents[None].to(self.device, self.text.dtype), order)
        embedding: Tensor = token[0]
        return embedding.float().cpu()

    @torch.no_grad()
    def embed_codes(self, codes: Int[Tensor, " code"]) -> Float[Tensor, "frame channel"]:
        """The source latents that audio codes stand for; DataError for codes outside the codebook."""
        quantizer, detokenizer = self._code_parts()
        size = quantizer.quantizer.codebook_size
        if len(codes) == 0 or not bool(((codes >= 0) & (codes < size)).all()):
            raise DataError(
                f"a plan's codes must be at least one, from 0 to {size - 1}; sample the song again"
            )
        indices = codes[None, :, None].to(self.device)
        hidden = quantizer.quantizer.get_output_from_indices(indices)
        latents: Tensor = detokenizer(hidden)
        return latents[0].float().cpu()

    @torch.no_grad()
    def read_codes(
        self, latents: Float[Tensor, "frame channel"], silence: Float[Tensor, "silence channel"]
    ) -> Int[Tensor, " code"]:
        """The audio codes of a song's latents, filled up to whole codes with latents of silence."""
        quantizer, _ = self._code_parts()
        song, filler = (frames[None].to(self.device, self.text.dtype) for frames in (latents, silence))
        _, codes = quantizer.tokenize(song, filler)
        indices: Tensor = codes[0, :, 0]
        return indices.long().cpu()

    def _code_parts(self) -> tuple[Any, Any]:
        """The quantizer and the detokenizer; DataError for a checkpoint without them."""
        if self.quantizer is None or self.detokenizer is None:
            raise DataError(
                "this checkpoint holds no audio tokenizer, so its songs cannot follow audio codes"
            )
        return self.quantizer, self.detokenizer

    def _ids(self, text: str, limit: int, kind: str, prompt_id: str) -> Int[Tensor, "1 token"]:
        ids = self.tokenizer.encode(text).ids
        if len(ids) > limit:
            raise DataError(
                f"prompt {prompt_id!r}: its {kind} takes {len(ids)} tokens, ACE-Step reads {limit}; shorten it"
            )
        return torch.tensor([ids], device=self.device)


def load_encoders(checkpoint: AceStepFolder, text_folder: Path, tokenizer: Path) -> AceStepEncoders:
    """All encoders in fp32, their weights mapped and compared strictly."""
    from diffusers.pipelines.ace_step.modeling_ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )

    has_codes = checkpoint.has("audio_tokenizer") and checkpoint.has("audio_token_detokenizer")
    condition = build_from_weights(AceStepConditionEncoder, checkpoint.read("condition_encoder"))
    text = load_text_encoder(text_folder)
    width = text.config.hidden_size
    if condition.config.text_hidden_dim != width:
        raise CheckpointError(
            f"{text_folder}: a text encoder of width {width}, this checkpoint needs one of "
            f"{condition.config.text_hidden_dim}"
        )
    quantizer = detokenizer = None
    if has_codes:
        quantizer = build_from_weights(AceStepAudioTokenizer, checkpoint.read("audio_tokenizer"))
        detokenizer = build_from_weights(
            AceStepAudioTokenDetokenizer, checkpoint.read("audio_token_detokenizer")
        )
    return AceStepEncoders(
        tokenizer=load_tokenizer(tokenizer),
        text=text,
        condition=condition,
        quantizer=quantizer,
        detokenizer=detokenizer,
    )


def build_from_weights(part_class: Any, part: PartWeights, dtype: torch.dtype = torch.float32) -> Any:
    """A part of a checkpoint, its weights mapped; CheckpointError unless they fit the class exactly.

    Buffers that files do not hold are computed on the CPU, so they are kept from the construction there.
    """
    try:
        with torch.device("meta"):
            module = part_class.from_config(part.config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{part.location}: no {part_class.__name__} has such sizes ({reason(error)})"
        ) from None
    assign(module, dict(part.state), part.location, dtype)
    restore_buffers(module, part_class, part.config)
    return module.requires_grad_(False)


def restore_buffers(module: nn.Module, part_class: Any, config: dict[str, Any]) -> None:
    """Replace buffers that are still on the meta device: constants that a class computes and no file holds."""
    names = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if not names:
        return
    constants = dict(part_class.from_config(config).named_buffers())
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_buffer(leaf, constants[name], persistent=False)


def load_text_encoder(folder: Path) -> Any:
    """A Qwen3 without its head, in fp32, strictly loaded."""
    from transformers import Qwen3Config, Qwen3Model
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = qwen_config(folder, Qwen3Config)
    with torch.device("meta"):
        model = Qwen3Model(config)
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in read_shards(folder, ORIGINAL_WEIGHTS).items()
        if not name.startswith("lm_head.")
    }
    assign(model, state, str(folder), torch.float32)
    model.rotary_emb = Qwen3RotaryEmbedding(config=config)
    return model.requires_grad_(False)


def qwen_config(folder: Path, config_class: Any) -> Any:
    """The configuration of a Qwen3; CheckpointError for another kind of model."""
    config = read_config(folder / CONFIG_FILE)
    if config.get("model_type") != "qwen3":
        raise CheckpointError(f"{folder}: expected a Qwen3, found model_type={config.get('model_type')!r}")
    return config_class.from_dict(config)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, without padding and truncation: a text that is too long is refused, not cut."""
    path = folder / QWEN_TOKENIZER
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the text encoder's tokenizer here")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{path}: no tokenizer ({reason(error)})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Sequences of different lengths as one tensor, zeros behind their ends."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
