"""The protocol of a song model: all that trainer and sampler know of it (docs/decisions/0009-protocol-2.md).

Latents are [row, frame, channel], t = 0 is the song and t = 1 noise, a velocity is noise - song. An embedding
is a model's encoding of one prompt; a condition is its encoding of a batch of rows. Both are opaque: code
outside a model only indexes their rows and moves them between devices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.sounds import Sound
from diffdpo.types import Clip, Embedding, Plan, Prompt, Row

Condition = dict[str, Tensor]
"""Named tensors, each with a leading row axis."""


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The space a model diffuses in."""

    channels: int
    frames_per_second: float
    sample_rate: int
    max_frames: int
    """The longest song the network was trained for."""
    window: Literal["exact", "fixed"] = "exact"
    """`exact` networks take any length and hide padding. `fixed` networks take songs of max_frames only: shorter
    songs are padded with zeros, so that a song does not depend on its batch."""
    receptive_frames: int = 0
    """Frames on either side that the sound of a frame depends on: the context of a chunk that is decoded alone."""
    rounding: Literal["down", "up"] = "down"
    """How seconds are rounded to frames."""
    multiple: int = 1
    """The number of frames is a multiple of this."""
    headroom_s: float = 0.0
    """Seconds that a song is generated longer than its duration, as far as the longest song allows; cut off after
    decoding."""
    unconditional_context: bool = False
    """Whether the unconditional branch of guidance is shown the in-painting context too, so that guidance is of the
    prompt alone."""
    times: tuple[float, ...] | None = None
    """The times t of a few-step network, from 1 to 0; None for a network of all times in [0, 1]."""

    def frames(self, seconds: float) -> int:
        """Latent frames of a duration, headroom included, at least one."""
        bare, whole = self._count(seconds), self._count(seconds + self.headroom_s)
        return max(bare, min(whole, self.max_frames))

    @property
    def headroom(self) -> int:
        """Whole frames in the headroom."""
        return int(self.headroom_s * self.frames_per_second)

    def _count(self, seconds: float) -> int:
        exact = seconds * self.frames_per_second
        frames = int(exact) if self.rounding == "down" else math.ceil(exact - 1e-9)
        return max(1, -(-frames // self.multiple)) * self.multiple


@runtime_checkable
class SongModel(Protocol):
    """A latent diffusion song model, as trainer and sampler see it."""

    @property
    def network(self) -> Any:
        """The trained network: a diffusers ModelMixin with PeftAdapterMixin that names its `_repeated_blocks`.

        Padding is hidden inside `forward`, since wrappers hook `forward`; its arguments are plain tensors, masks
        among them.
        """

    @property
    def spec(self) -> LatentSpec: ...

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Dotted suffixes of the layers that LoRA adapts by default, matched as peft matches them."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of a condition that `without` can drop."""

    @property
    def unconditional(self) -> tuple[str, ...]:
        """The parts that classifier-free guidance drops where no negative prompt is given; () for a distilled
        network, which cannot be guided."""

    @property
    def fingerprint(self) -> str:
        """Identity of the encoders and the text format, computed without loading the encoders: part of the cache
        key of embeddings."""

    @property
    def timed_lyrics(self) -> bool:
        """Whether the lyrics of a recording need times to be trained on."""

    @property
    def embeds_audio(self) -> bool:
        """Whether `embed` takes the style of a recording, a prompt's `style_audio`."""

    def embed(self, prompt: Prompt) -> Embedding:
        """The embedding of one prompt, for every task of the model. DataError for a prompt that the model cannot
        encode."""

    def condition(self, rows: Sequence[Row], length: int) -> Condition:
        """Tensors for a batch of rows padded to `length` frames, on the CPU."""

    def without(self, condition: Condition, part: str, drop_mask: Bool[Tensor, " row"]) -> Condition:
        """The condition with one part replaced by the model's own null in the rows where `drop_mask` is True."""

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "row frame channel"],
        t: Float[Tensor, " row"],
        condition: Condition,
        frames: Int[Tensor, " row"],
    ) -> Float[Tensor, "row frame channel"]:
        """The predicted noise - song at (x, t), zero behind the end of each song.

        `network` is passed in because accelerate wraps it; it is called exactly once, and nothing else of it
        is used. `t` is in at least fp32, and `frames`, the number of valid frames, may stay on the CPU.
        """

    def encode(self, clip: Clip, generator: torch.Generator | None = None) -> Float[Tensor, "frame channel"]:
        """Latents of a song of any rate and number of channels, in bounded memory: a sample of the posterior drawn
        from `generator`, the mean without one."""

    def decode(self, latents: Float[Tensor, "frame channel"], first_frame: int = 0) -> Clip:
        """The sound of one song's latents, or of a chunk that begins at `first_frame`, in bounded memory."""

    def place(self, part: Literal["encoders", "codec"], device: str | None) -> None:
        """Move the encoders or the codec to a device; None frees their memory for good."""


@runtime_checkable
class Inpaints(Protocol):
    """A song model that can fill in a song around a part that is kept. Optional."""

    def with_context(
        self,
        condition: Condition,
        latents: Float[Tensor, "row frame channel"],
        keep_mask: Bool[Tensor, "row frame"],
    ) -> Condition:
        """The condition with `latents` as the in-painting context where `keep_mask` is True; all False is none."""


@runtime_checkable
class Prepares(Protocol):
    """A song model that computes what does not depend on x and t once a song instead of once a step. Optional."""

    def prepare(self, network: Any, condition: Condition, frames: Int[Tensor, " row"]) -> Condition:
        """A condition that `velocity` takes in place of `condition`; for the bare network, not one in accelerate's
        wrapper."""


@runtime_checkable
class Plans(Protocol):
    """A song model whose songs follow a plan of their own, such as audio codes. Optional."""

    @property
    def planner(self) -> str:
        """Identity of the planner and its weights."""

    def plan(self, prompt: Prompt, frames: int, generator: torch.Generator) -> Plan:
        """A plan for one candidate, drawn from `generator`."""

    def embed_plan(self, plan: Plan) -> Embedding:
        """The embedding of a plan, to be merged into the candidate's embedding. DataError for another planner's
        plan."""


@runtime_checkable
class Covers(Protocol):
    """A song model that makes a song anew after codes that it reads off the song's sound. Optional."""

    @property
    def cover_planner(self) -> str:
        """Identity of the tokenizer that reads the codes: the planner of the plans of `cover_plan`."""

    def cover_plan(self, latents: Float[Tensor, "frame channel"]) -> Plan:
        """The plan that a song's latents stand for. DataError where the checkpoint lacks the tokenizer."""

    def embed_plan(self, plan: Plan) -> Embedding:
        """See Plans."""


@runtime_checkable
class Transcribes(Protocol):
    """A song model with conditions on the time axis that can be read off recordings, such as beats. Optional."""

    def transcribe(self, clip: Clip) -> Embedding:
        """Named tensors that a recording adds to its embedding; {} where nothing is transcribed."""


@runtime_checkable
class EncodesSounds(Protocol):
    """A song model that encodes sounds of any length with a slice in memory at a time. Optional."""

    def encode_sound(self, sound: Sound) -> Float[Tensor, "frame channel"]:
        """`encode` of the whole sound, but for rounding where it is resampled."""


@runtime_checkable
class TranscribesSounds(Protocol):
    """A song model that transcribes sounds of any length with a slice in memory at a time. Optional."""

    def transcribe_sound(self, sound: Sound) -> Embedding:
        """`transcribe` of the whole sound; {} where nothing is transcribed."""


@runtime_checkable
class DecodesWithGradients(Protocol):
    """A song model through whose codec gradients pass, from sound to latents. Optional."""

    def decode_tensor(
        self, latents: Float[Tensor, "frame channel"], first_frame: int = 0
    ) -> Float[Tensor, "2 sample"]:
        """`decode` as a tensor that gradients pass through. DataError where the codec is absent or has none."""


@runtime_checkable
class DividesFrames(Protocol):
    """A song model whose network divides songs over processes by `diffdpo.models.frame_shards`. Optional."""

    def check_division(self, processes: int) -> None:
        """DataError where this network cannot be divided over so many processes."""


OPTIONAL: dict[Any, str] = {
    Inpaints: "in-paint, which train.inpaint, edits and longform.method=continue need",
    Prepares: "prepare conditions",
    Plans: "plan songs",
    Covers: "cover a recording, which edit.cover needs",
    Transcribes: "transcribe recordings",
    EncodesSounds: "encode sounds in slices",
    TranscribesSounds: "transcribe sounds in slices",
    DividesFrames: "be divided over frames, which train.context_parallel needs",
    DecodesWithGradients: "be differentiated through its codec, which optimised noise needs",
}
"""The ability that each optional protocol stands for, as an error message names it."""


def supports(model: Any, protocol: type) -> bool:
    """Whether a model has an optional protocol. A wrapper, which has the wrapped model as `base_model`, supports
    the protocols that both have."""
    inner = getattr(model, "base_model", None)
    return isinstance(model, protocol) and (inner is None or supports(inner, protocol))


def require(model: Any, protocol: type) -> None:
    """DataError unless a model has an optional protocol."""
    if not supports(model, protocol):
        raise DataError(f"this model cannot {OPTIONAL[protocol]}; choose another model, or leave that out")


def check_controls(prompt: Prompt, controls: Sequence[str]) -> None:
    """DataError for a control of a prompt that is not among the `controls` of a model."""
    for name, _ in prompt.controls:
        if name not in controls:
            choices = ", ".join(controls) or "none"
            raise DataError(
                f"prompt {prompt.id!r}: this model knows no control {name!r}.{closest(name, controls)} "
                f"Known: {choices}."
            )


def check_part(part: str, parts: Sequence[str]) -> None:
    """DataError for a part of the condition that a model cannot drop."""
    if part not in parts:
        raise DataError(f"this model has no part {part!r}.{closest(part, parts)} Known: {', '.join(parts)}.")


def take(tree: dict[str, Tensor], index: Int[Tensor, " row"]) -> dict[str, Tensor]:
    """Rows of named tensors, in the order of `index`."""
    return {name: tensor[index.to(tensor.device)] for name, tensor in tree.items()}


def move(tree: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Named tensors on a device."""
    return {name: tensor.to(device) for name, tensor in tree.items()}


def host_value(number: Int[Tensor, ""]) -> int | None:
    """An integer on the host; None where it has no value, as in a pass that is traced for its shapes alone."""
    try:
        return int(number)
    except DataDependentOutputException:
        return None
