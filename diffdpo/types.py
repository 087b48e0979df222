"""The values that data, models, objectives and mining exchange: frozen dataclasses of arrays with named shapes."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

BatchKind = Literal["song", "pair", "rated", "group", "contrast"]
Need = Literal["reference", "old", "velocities", "frame_errors", "contrast"]
Take = Literal["soft_label", "span"]
ObjectiveState = Mapping[str, float]
"""State of an objective over steps, or the means of its metrics over one step; the same on all processes."""
PerExample = Float[Tensor, " example"]
PerSong = Float[Tensor, "example member"]
LossMetrics = Mapping[str, PerExample]
"""Metrics that an objective logs, a number an example, without gradient."""
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Audio samples with their sample rate."""

    samples: Float[np.ndarray, "channel sample"]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate


Control = str | int | float | tuple[tuple[float, str], ...]
"""The value of a control: text, a number, or sections as (start in seconds, name)."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The description of a song to be generated. Hashable; a model's `embed` turns a prompt into tensors.

    Style comes as text, as audio, or as both. Prompts of one `group` never fall on both sides of a split.
    """

    id: str
    text: str | None = None
    style_audio: str | Clip | None = field(default=None, compare=False)
    """A recording whose style is wanted: a path or a clip."""
    negative_text: str | None = None
    """Style to stay away from, for classifier-free guidance."""
    lyrics: str | None = None
    """LRC with times, plain lines, or lines under structure tags; "" says that nothing is sung."""
    language: str | None = None
    """Language of the lyrics: a code such as en or zh."""
    duration_s: float = 10.0
    controls: tuple[tuple[str, Control], ...] = ()
    """Further properties as sorted (name, value) pairs, see `CONTROLS`; a model refuses those it does not know."""
    group: str = ""
    """Defaults to a hash of text, recording and lyrics."""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a prompt needs an id")
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"prompt {self.id!r}: duration_s must be positive, got {self.duration_s}")
        names = [name for name, _ in self.controls]
        if names != sorted(set(names)):
            raise ValueError(f"prompt {self.id!r}: controls must be sorted by name and differ, got {names}")
        for name, value in self.controls:
            if name in CONTROLS and not CONTROLS[name].accepts(value):
                raise ValueError(
                    f"prompt {self.id!r}: {name} must be {CONTROLS[name].description}, got {value!r}"
                )
        if not self.group:
            content = f"{self.text}|{self.style_audio}|{self.lyrics}"
            digest = hashlib.sha256(content.encode("utf-8", "surrogatepass"))
            object.__setattr__(self, "group", digest.hexdigest()[:12])

    def control(self, name: str) -> Control | None:
        """The value of a control, None where the prompt does not set it."""
        return dict(self.controls).get(name)

    def with_control(self, name: str, value: Control) -> "Prompt":
        """The same prompt with one control set."""
        return replace(self, controls=tuple(sorted({**dict(self.controls), name: value}.items())))


@dataclass(frozen=True)
class ControlType:
    """The values that a control takes."""

    description: str
    """The values in words, for errors: "a number between 20 and 400"."""
    accepts: Callable[[Any], bool]


def _number_between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value < high


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_sections(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and type(pair[0]) in (int, float)
        and pair[0] >= 0
        and _is_text(pair[1])
        for pair in value
    )


CONTROLS: Mapping[str, ControlType] = {
    "bpm": ControlType("a number of beats a minute, 20 to 400", _number_between(20, 400)),
    "key": ControlType("text such as 'A minor'", _is_text),
    "metre": ControlType("text such as '3/4'", _is_text),
    "sections": ControlType("pairs of a start in seconds and a name", _is_sections),
    "start": ControlType("a fraction of the song in [0, 1)", _number_between(0, 1)),
    "axis": ControlType("the name of an axis such as 'harmony.key'", _is_text),
}
"""Controls that have one meaning for every model. `start` says where an excerpt begins in its song, and
`axis` which axis the song is to be good on, for a model aligned on a union of axes."""

Embedding = dict[str, Tensor]
"""A model's embedding of one prompt: named tensors of any shape and number, without a batch axis."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """One row of a batch as a model's `condition` takes it: an embedding, and which frames of a song the row is.

    The members of a pair have a row each, since they may have been generated from different plans.
    """

    embedding: Embedding
    frames: int
    """Frames that the prompt asks for. The number of valid frames is an argument of `velocity`."""
    first_frame: int = 0
    """Place of the row's first frame in its song."""
    song_frames: int | None = None
    """Frames of the whole song; None where the row is the whole song."""

    @property
    def total_frames(self) -> int:
        """Frames of the whole song."""
        return self.frames if self.song_frames is None else self.song_frames

    @property
    def is_full_song(self) -> bool:
        """Whether the row is the whole song, not an excerpt or a window."""
        return self.first_frame == 0 and self.total_frames == self.frames


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """The decisions of a planner for one candidate, such as audio codes, small enough to be stored with the
    candidate."""

    planner: str
    """Identity of the planner and its weights: a plan of another planner is refused."""
    tensors: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PlanText:
    """A plan of a planner that is a language model, as text."""

    prompt: str
    """What the planner reads."""
    completion: str
    """What it writes, without the token that ends it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training examples. An example is one song, or the winner and loser of a pair, or a group of songs.

    The members of an example share noise, timestep and dropped parts of the condition.
    """

    latents: Float[Tensor, "example member frame channel"]
    frames: Int[Tensor, "example member"]
    """Valid frames of each member; later frames are padding."""
    rows: tuple[tuple[Row, ...], ...]
    """The condition of each member of each example."""
    reference_rows: tuple[tuple[Row, ...], ...] | None = None
    """The condition for the reference policy where it differs, as with `axis`, which the reference does not
    know."""
    plus_rows: tuple[tuple[Row, ...], ...] | None = None
    """The condition of the prompt that says more of a slider's concept."""
    minus_rows: tuple[tuple[Row, ...], ...] | None = None
    """The condition of the prompt that says less of it."""
    scale: Float[Tensor, " example"] | None = None
    """The strength at which the policy's adapter acts on each example; None: as trained, 1."""
    positions: tuple[int, ...]
    """Place of each example in the training stream: the key of all its randomness."""
    weight: Float[Tensor, " example"]
    ids: tuple[str, ...] = ()
    """Names of the examples, the same in every epoch: the key of what is cached about an example."""
    visits: tuple[int, ...] = ()
    """In how many earlier epochs each example occurred."""
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
    plus: Float[Tensor, "example member frame channel"] | None = None
    """The reference's, asked for more of a slider's concept."""
    minus: Float[Tensor, "example member frame channel"] | None = None
    """The reference's, asked for less of it."""


@dataclass(frozen=True, kw_only=True)
class FrameErrors:
    """Squared velocity errors before the mean over time, for objectives on segments."""

    policy: Float[Tensor, "example member frame"]
    reference: Float[Tensor, "example member frame"] | None = None
    old: Float[Tensor, "example member frame"] | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The arguments of an objective: masked mean squared velocity errors and the values of the data.

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
    scale: Float[Tensor, " example"] | None = None
    """The strength at which the policy's adapter acted."""
    frame_weights: Float[Tensor, "example member frame"] | None = None
    """The weight of each frame in the errors; None: all valid frames count alike."""
    state: ObjectiveState = field(default_factory=dict)
    """The objective's state after earlier steps, from its `update`."""


def expect(value: _T | None) -> _T:
    """A field of Outputs that the objective's `needs` or kind of batch promises."""
    assert value is not None, "the objective did not declare that it needs this"
    return value


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """One loss an example, never reduced, so that the mean over a global batch does not depend on its split."""

    loss: PerExample
    metrics: LossMetrics = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters and whose call is a pure function.

    `needs` are the forward passes and tensors that the trainer has to supply. `takes` is the data of pairs that its
    configuration decides about: uses, or ignores because the user says so. What an objective does not take, its
    data must not hold. An objective that depends on earlier steps has `update(state, means)` too: from its state
    and the means of its metrics over a step and all processes, to the state in `Outputs.state` of the next step.
    """

    @property
    def batch_kind(self) -> BatchKind: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def takes(self) -> frozenset[Take]: ...

    def __call__(self, outputs: Outputs) -> LossOutput: ...
