"""Stable Audio Open as a SongModel: v-prediction through the exact change of variables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo.codecs.oobleck import Vae
from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models.base import Condition, LatentSpec, check_controls, check_part
from diffdpo.models.codec_audio import decode_clip, decode_tensor, encode_clip, encode_slices
from diffdpo.models.reparametrization import velocity_from_v, vp_point
from diffdpo.models.stable_audio_open.network import StableAudioDiTModel
from diffdpo.models.stable_audio_open.text import T5Prompts
from diffdpo.sounds import Sound
from diffdpo.types import Clip, Embedding, Prompt, Row


@dataclass(kw_only=True, eq=False)
class StableAudioOpen:
    """A song model built from a Stable Audio Open network and the encoders around it.

    Embeddings hold the text's tokens and those of start and end in seconds. Songs are generated at the
    network's full length and cut, as published. The null of guidance is zeros in the place of all tokens.
    """

    network: StableAudioDiTModel
    spec: LatentSpec
    tokens: int
    """Text tokens of the context; shorter texts are padded with zeros."""
    encoders: T5Prompts | None = None
    codec: Vae | None = None
    identify: Callable[[], str] = lambda: "no encoders"
    """The fingerprint of the encoders, computed on first use."""
    parts: tuple[str, ...] = ("prompt",)
    unconditional: tuple[str, ...] = ("prompt",)
    timed_lyrics: bool = False
    embeds_audio: bool = False
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    @property
    def fingerprint(self) -> str:
        """See SongModel."""
        return self.identify()

    def embed(self, prompt: Prompt) -> Embedding:
        """The text's tokens without padding, and those of start and end."""
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
        return self.encoders.embed(prompt.text or "", prompt.duration_s, self.tokens, prompt.id)

    def condition(self, rows: Sequence[Row], length: int) -> Condition:
        """The tokens of text, start and end, and the global condition of start and end."""
        texts = [row.embedding["text"] for row in rows]
        tokens = torch.stack([F.pad(text, (0, 0, 0, self.tokens - len(text))) for text in texts])
        seconds = torch.stack([row.embedding["seconds"] for row in rows])
        return {"text": torch.cat([tokens, seconds], 1), "duration": seconds.flatten(1)}

    def without(self, condition: Condition, part: str, drop_mask: Bool[Tensor, " row"]) -> Condition:
        """The condition with zeros in the place of all tokens, as published."""
        check_part(part, self.parts)
        text = condition["text"]
        return {**condition, "text": text.masked_fill(drop_mask.to(text.device)[:, None, None], 0)}

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "row frame channel"],
        t: Float[Tensor, " row"],
        condition: Condition,
        frames: Int[Tensor, " row"],
    ) -> Float[Tensor, "row frame channel"]:
        """noise - song at (x, t), from the network's v; see SongModel."""
        time = t.to(x.device, torch.promote_types(t.dtype, torch.float32))
        point = vp_point(x, time)
        v = network(
            point.x,
            point.angle * (2 / torch.pi),
            text=condition["text"].to(x.dtype),
            duration=condition["duration"].to(x.dtype),
            frames=frames,
        )
        inside = mask_from_frames(frames.to(x.device), x.shape[1])
        return velocity_from_v(point, v).where(inside[..., None], 0)

    def encode(self, clip: Clip, generator: torch.Generator | None = None) -> Float[Tensor, "frame channel"]:
        """See SongModel. Audio keeps its level."""
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
