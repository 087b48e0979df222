"""What trainer and sampler ask of a song model: seven members. A new one needs a decision record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo.types import Clip, Prompt

Condition = dict[str, Tensor]
"""Named tensors with a leading batch axis, opaque to trainer and sampler. Zeros mean: not given."""


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The space a model diffuses in."""

    channels: int
    frames_per_second: float
    sample_rate: int
    max_frames: int
    """The longest song the network was trained for."""
    window: Literal["exact", "fixed"] = "exact"
    """`fixed` networks only know songs padded to max_frames; `exact` ones take any length and mask padding."""
    reach: int = 0
    """Frames on either side that the sound of a frame depends on: to be decoded alone, a piece needs them."""

    def frames(self, seconds: float) -> int:
        """Latent frames of a duration, at least one."""
        return max(1, int(seconds * self.frames_per_second))


@runtime_checkable
class SongModel(Protocol):
    """A latent diffusion song model, as trainer and sampler see it."""

    @property
    def network(self) -> Any:
        """What is trained: a diffusers ModelMixin with PeftAdapterMixin."""

    @property
    def latents(self) -> LatentSpec: ...

    def embed(self, prompt: Prompt) -> Prompt:
        """The same prompt with its style embedded and its lyrics tokenised: the part worth doing once."""

    def condition(self, prompts: Sequence[Prompt], frames: int) -> Condition:
        """Tensors for a batch of embedded prompts, padded to `frames`."""

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "batch frame channel"],
        t: Float[Tensor, " batch"],
        condition: Condition,
        frames: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch frame channel"]:
        """The predicted noise - song at (x, t). `network` is passed in because accelerate wraps it."""

    def encode(self, clip: Clip) -> Float[Tensor, "frame channel"]:
        """Latents of a song of any rate and number of channels, memory constant in its length."""

    def decode(self, latents: Float[Tensor, "frame channel"], first_frame: int = 0) -> Clip:
        """The sound of one song's latents, memory constant in its length, or of a piece from `first_frame` on."""


@runtime_checkable
class Prepares(Protocol):
    """A song model that can do once a song what does not depend on x and t. A model need not have it."""

    def prepare(self, network: Any, condition: Condition, frames: Int[Tensor, " batch"]) -> Condition:
        """What `velocity` takes in place of `condition`, for the network itself and not what accelerate wraps."""


@runtime_checkable
class Transcribes(Protocol):
    """A song model whose tokens can be heard in recordings, as beats can. A model need not have it."""

    def transcribe(self, clip: Clip) -> tuple[tuple[float, tuple[int, ...]], ...]:
        """Timed lines of tokens, as in `Prompt.lyric_lines`."""


def drop(condition: Condition, part: str, where: Bool[Tensor, " batch"]) -> Condition:
    """The same condition with one part taken away from some songs."""
    kept = condition[part]
    shape = (-1, *[1] * (kept.ndim - 1))
    return {**condition, part: kept.masked_fill(where.view(shape), 0)}


def repeat(condition: Condition, times: int) -> Condition:
    """The condition of [a, b] for a batch stacked as [a, b, a, b, …]."""
    return {name: tensor.repeat(times, *[1] * (tensor.ndim - 1)) for name, tensor in condition.items()}
