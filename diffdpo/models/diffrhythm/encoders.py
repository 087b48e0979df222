"""The encoders around a DiffRhythm network, as protocols: of style, of lyrics and of beats."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from diffdpo.lyrics.front_end import TokenLine
from diffdpo.sounds import Sound
from diffdpo.types import Clip


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
