"""Stable Audio 3 as a SongModel: text and duration as context, in-painting frames as channels of every block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo.codecs.same import SameCodec
from diffdpo.errors import DataError
from diffdpo.models.base import Condition, LatentSpec, check_controls, check_part
from diffdpo.models.codec_audio import decode_clip, decode_tensor, encode_clip, encode_slices
from diffdpo.models.stable_audio3.network import StableAudio3DiTModel
from diffdpo.models.stable_audio3.text import TOKENS, PromptEncoder
from diffdpo.sounds import Sound
from diffdpo.types import Clip, Embedding, Prompt, Row

Behavior = Literal["original", "diffusers"]
"""Where the two implementations differ. `original`: the in-painting channels are zero where nothing is kept,
and the null of guidance is zeros. `diffusers`: without a context there are no in-painting channels, and the
null is the empty text."""


@dataclass(kw_only=True, eq=False)
class StableAudio3:
    """A song model built from a Stable Audio 3 network and the encoders around it.

    Embeddings hold the text's tokens and the embedding of the duration, which is a token of the context and a
    global condition. A distilled network has no unconditional branch.
    """

    network: StableAudio3DiTModel
    spec: LatentSpec
    encoders: PromptEncoder | None = None
    codec: SameCodec | None = None
    behavior: Behavior = "original"
    distilled: bool = False
    identify: Callable[[], str] = lambda: "no encoders"
    """The fingerprint of the encoders, computed on first use."""
    parts: tuple[str, ...] = ("prompt",)
    timed_lyrics: bool = False
    embeds_audio: bool = False
    lora_targets: tuple[str, ...] = ("to_qkv", "to_q", "to_kv", "to_out")

    @property
    def unconditional(self) -> tuple[str, ...]:
        """See SongModel."""
        return () if self.distilled else self.parts

    @property
    def fingerprint(self) -> str:
        """See SongModel."""
        return self.identify()

    def embed(self, prompt: Prompt) -> Embedding:
        """The text's tokens without padding, the duration, and for diffusers' null the tokens of the empty text."""
        check_controls(prompt, ())
        if self.encoders is None:
            raise DataError(
                f"prompt {prompt.id!r}: the encoders were freed, and this prompt is not among the embeddings kept"
            )
        if prompt.style_audio is not None:
            raise DataError(
                f"prompt {prompt.id!r}: this model takes no style_audio; describe the style as text"
            )
        if prompt.lyrics:
            raise DataError(f"prompt {prompt.id!r}: this model is instrumental; leave the lyrics out")
        embedding = {
            "text": self.encoders.embed_text(prompt.text or "", prompt.id),
            "duration": self.encoders.embed_duration(prompt.duration_s),
        }
        if self.behavior == "diffusers":
            embedding["null"] = self.encoders.embed_text("", prompt.id)
        return embedding

    def condition(self, rows: Sequence[Row], length: int) -> Condition:
        """Context tokens and which of them exist, the duration, and in-painting channels without a frame kept."""
        condition = _context("text", rows)
        if self.behavior == "diffusers":
            condition |= _context("null", rows)
        condition["duration"] = torch.stack([row.embedding["duration"] for row in rows])
        local = torch.zeros(len(rows), length, self.network.config.local_add_cond_dim)
        condition["local"] = F.pad(local, (0, 1), value=float(self.behavior == "original"))
        return condition

    def without(self, condition: Condition, part: str, drop_mask: Bool[Tensor, " row"]) -> Condition:
        """The condition with zeros, or the empty text, in the place of text and duration token."""
        check_part(part, self.parts)
        text, text_mask = condition["text"], condition["text_mask"]
        rows = drop_mask.to(text.device)[:, None]
        if self.behavior == "diffusers":
            null, null_mask = condition["null"], condition["null_mask"]
        else:
            null, null_mask = torch.zeros_like(text), torch.ones_like(text_mask)
        return {
            **condition,
            "text": torch.where(rows[..., None], null, text),
            "text_mask": torch.where(rows, null_mask, text_mask),
        }

    def with_context(
        self,
        condition: Condition,
        latents: Float[Tensor, "row frame channel"],
        keep_mask: Bool[Tensor, "row frame"],
    ) -> Condition:
        """The latents that are kept, and a channel that says which these are."""
        local = condition["local"]
        keep = keep_mask[..., None].to(local.device)
        context = latents.to(local).where(keep, 0)
        present = torch.where(keep.any(1, keepdim=True), 1.0, local[..., -1:])
        return {**condition, "local": torch.cat([keep.to(local), context, present], -1)}

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "row frame channel"],
        t: Float[Tensor, " row"],
        condition: Condition,
        frames: Int[Tensor, " row"],
    ) -> Float[Tensor, "row frame channel"]:
        """noise - song at (x, t), which is what the network predicts; see SongModel."""
        return network(
            x,
            t.to(x.device, torch.promote_types(x.dtype, torch.float32)),
            text=condition["text"].to(x.dtype),
            text_mask=condition["text_mask"],
            duration=condition["duration"].to(x.dtype),
            local=condition["local"].to(x.dtype),
            frames=frames,
        )

    def check_division(self, processes: int) -> None:
        """See DividesFrames: any number will do."""

    def encode(self, clip: Clip, generator: torch.Generator | None = None) -> Float[Tensor, "frame channel"]:
        """See SongModel. Audio keeps its level; the latents are not random."""
        return encode_clip(self.codec, clip, self.spec.sample_rate, generator)

    def encode_sound(self, sound: Sound) -> Float[Tensor, "frame channel"]:
        """See EncodesSounds."""
        return encode_slices(self.codec, sound, self.spec.sample_rate)

    def decode(self, latents: Float[Tensor, "frame channel"], first_frame: int = 0) -> Clip:
        """See SongModel."""
        return decode_clip(self.codec, latents, self.spec.sample_rate, first_frame)

    def decode_tensor(
        self, latents: Float[Tensor, "frame channel"], first_frame: int = 0
    ) -> Float[Tensor, "2 sample"]:
        """See DecodesWithGradients."""
        return decode_tensor(self.codec, latents, first_frame)

    def place(self, part: Literal["encoders", "codec"], device: str | None) -> None:
        """See SongModel."""
        if device is None:
            setattr(self, part, None)
        elif part == "codec" and self.codec is not None:
            torch.nn.Module.to(self.codec.module, device)
        elif part == "encoders" and self.encoders is not None:
            self.encoders.to(device)


def _context(name: str, rows: Sequence[Row]) -> Condition:
    """The tokens of a text, padded to the length of the context, and the duration behind them; and which exist."""
    texts = [row.embedding[name] for row in rows]
    tokens = torch.stack([F.pad(text, (0, 0, 0, TOKENS - len(text))) for text in texts])
    durations = torch.stack([row.embedding["duration"] for row in rows])[:, None]
    counts = torch.tensor([len(text) for text in texts])
    mask = torch.arange(TOKENS) < counts[:, None]
    return {name: torch.cat([tokens, durations], 1), f"{name}_mask": F.pad(mask, (0, 1), value=True)}
