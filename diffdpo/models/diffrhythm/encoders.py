"""The parts around a DiffRhythm network, as protocols: its codec, and the encoders of style, lyrics and beats."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.lyrics.front_end import TokenLine
from diffdpo.sounds import Sound
from diffdpo.types import Clip


@runtime_checkable
class Codec(Protocol):
    """Stereo audio at the model's rate <-> latents."""

    def encode(
        self, audio: Float[Tensor, "batch 2 sample"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frame channel"]: ...

    def decode(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]: ...


@runtime_checkable
class WindowedCodec(Protocol):
    """A codec that reads the song it encodes window by window."""

    def encode_windows(
        self,
        read: Callable[[int, int], Float[Tensor, "batch 2 _"]],
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch frame channel"]: ...


@runtime_checkable
class StyleEncoder(Protocol):
    """Text, audio or both to one style vector; zeros without either."""

    def embed(self, text: str | None, clip: Clip | None) -> Float[Tensor, " style"]: ...


@runtime_checkable
class LyricsEncoder(Protocol):
    """LRC or plain lyrics to timed lines of vocabulary tokens."""

    def lines(self, lyrics: str, language: str | None, duration_s: float) -> tuple[TokenLine, ...]: ...


@runtime_checkable
class BeatEncoder(Protocol):
    """Beats as timed lines of one token, for networks that take beats in the place of lyrics."""

    def transcribe(self, sound: Sound) -> tuple[TokenLine, ...]: ...

    def beats(
        self,
        text: str | None,
        style: Float[Tensor, " style"] | None,
        duration_s: float,
        bpm: float | None = None,
    ) -> tuple[TokenLine, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The encoders that turn prompts into embeddings. A model without an encoder refuses prompts that need it."""

    style: StyleEncoder | None = None
    lyrics: LyricsEncoder | None = None
    beats: BeatEncoder | None = None
