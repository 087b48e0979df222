"""The values that cross the borders between data, model, objective and mining. Frozen, with shapes."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

BatchKind = Literal["song", "pair", "rated", "group"]
Need = Literal["reference", "old", "velocities", "frame_errors"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A piece of audio with its sample rate beside it."""

    samples: Float[np.ndarray, "channel sample"]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What one song is asked to be.

    Style comes as text, as audio (a path, or a clip), or already embedded. Lyrics come as LRC or plain text,
    or already as tokens with their start times. Prompts of one `group` never fall on both sides of a split.
    """

    id: str
    text: str | None = None
    style_audio: str | Clip | None = field(default=None, compare=False)
    style: Float[Tensor, " style"] | None = field(default=None, compare=False)
    """An embedded style; it wins over text and audio."""
    negative_text: str | None = None
    lyrics: str | None = None
    lyric_lines: tuple[tuple[float, tuple[int, ...]], ...] | None = None
    """(start in seconds, vocabulary tokens) of each line; wins over `lyrics`."""
    language: str | None = None
    duration_s: float = 10.0
    start: float = 0.0
    """Where this excerpt begins in its song, as a fraction of the song; 0 for whole songs."""
    axis: str = ""
    """The axis this song is to be good on, for models aligned on a union of axes; empty for none in particular."""
    group: str = ""
    """Defaults to a hash of what is asked for."""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a prompt needs an id")
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"prompt {self.id!r}: duration_s must be positive, got {self.duration_s}")
        if not 0 <= self.start < 1:
            raise ValueError(f"prompt {self.id!r}: start is a fraction in [0, 1), got {self.start}")
        if not self.group:
            asked = f"{self.text}|{self.style_audio}|{self.lyrics}"
            object.__setattr__(self, "group", hashlib.sha256(asked.encode()).hexdigest()[:12])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples of training. An example is one song, or the winner and loser of a pair, or a group.

    Its members share the prompt, the noise, the timestep and the conditioning that is dropped.
    """

    latents: Float[Tensor, "example member frame channel"]
    frames: Int[Tensor, "example member"]
    """Valid frames of each member; what lies behind is padding."""
    prompts: tuple[Prompt, ...]
    positions: tuple[int, ...]
    """Place of each example in the training stream: the key of all its randomness."""
    weight: Float[Tensor, " example"]
    ids: tuple[str, ...] = ()
    """Names of the examples, the same whenever one comes round again: the key of what is cached about it."""
    visits: tuple[int, ...] = ()
    """How often each example has come round before."""
    axes: tuple[str, ...] = ()
    """The axis each pair was chosen on."""
    soft_label: Float[Tensor, " example"] | None = None
    """Probability that the member called winner really is the better one."""
    score: Float[Tensor, "example member"] | None = None
    span: Bool[Tensor, "example frame"] | None = None
    """The frames a preference is about; all of them for an example that names none."""


@dataclass(frozen=True, kw_only=True)
class Velocities:
    """The predictions themselves, for objectives that need more than their errors."""

    policy: Float[Tensor, "example member frame channel"]
    target: Float[Tensor, "example member frame channel"]
    reference: Float[Tensor, "example member frame channel"] | None = None
    old: Float[Tensor, "example member frame channel"] | None = None


@dataclass(frozen=True, kw_only=True)
class FrameErrors:
    """Squared velocity errors before the mean over time, for objectives on segments."""

    policy: Float[Tensor, "example member frame"]
    reference: Float[Tensor, "example member frame"] | None = None
    old: Float[Tensor, "example member frame"] | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """All that an objective may look at: masked mean squared velocity errors and what the data says.

    `reference`, `old`, `velocities` and `frame_errors` are there only for objectives that declare the need.
    Members of a pair are in the order winner, loser.
    """

    policy: Float[Tensor, "example member"]
    reference: Float[Tensor, "example member"] | None = None
    old: Float[Tensor, "example member"] | None = None
    t: Float[Tensor, " example"] | None = None
    mask: Bool[Tensor, "example member frame"] | None = None
    soft_label: Float[Tensor, " example"] | None = None
    score: Float[Tensor, "example member"] | None = None
    span: Bool[Tensor, "example frame"] | None = None
    velocities: Velocities | None = None
    frame_errors: FrameErrors | None = None
    running: Mapping[str, float] = field(default_factory=dict)
    """What the objective's `update` made of earlier steps; the same on all processes."""


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """One loss an example, never reduced, so that the mean over a global batch does not depend on its split."""

    loss: Float[Tensor, " example"]
    metrics: Mapping[str, Float[Tensor, " example"]] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters and whose call is a pure function.

    One that depends on earlier steps has `update(running, means)` too: from what it kept so far, and the means of
    its metrics over a step and all processes, to what the next step finds in `Outputs.running`.
    """

    @property
    def batch_kind(self) -> BatchKind: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def __call__(self, outputs: Outputs) -> LossOutput: ...
