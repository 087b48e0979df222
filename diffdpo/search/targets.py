"""Targets of optimised noise that a user can give: a loudness curve, a melody, a form, a style.

A target is a frozen dataclass of arguments; `build` makes its loss, a function of a stretch of sound and of its
place in the song that gradients pass through. Losses are about 1 for an unrelated song and 0 for a perfect one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_number, check_range
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.errors import ConfigError, DataError
from diffdpo.registry import Choice, Table, bind, pick
from diffdpo.search.differentiable import (
    HOP_S,
    SoundTensor,
    chromagram,
    loudness_curve,
    mel_cepstrum,
    moment_means,
    similarity_matrix,
)
from diffdpo.types import Prompt

TEN_DB_SQUARED = 100.0
SoundLoss = Callable[[SoundTensor, float], Float[Tensor, ""]]
"""The loss of a stretch of sound that begins at so many seconds of its song."""


@dataclass(frozen=True, kw_only=True)
class SongSpec:
    """The song that a target is for."""

    sample_rate: int
    seconds: float
    prompt: Prompt


@runtime_checkable
class SoundTarget(Protocol):
    """What a song is to come near to."""

    def build(self, song: SongSpec) -> SoundLoss:
        """The loss for one song. DataError for a target that cannot be read or does not fit."""
        ...


@dataclass(frozen=True)
class IntensityTarget:
    """A loudness curve in dB. The loss is the mean squared difference, in units of (10 dB)²."""

    curve: list[Any] = field(default_factory=list)
    """Points [second, dB] with straight lines between them."""
    audio: str = field(default="", metadata=INPUT_FILE)
    """Or a recording that has the curve."""
    smoothing_s: float = 1.0
    """Length of the filter that smooths the curves of song and recording; 0: none."""
    relative: bool = True
    """Compare curves without their means: songs are brought to one loudness when they are written."""

    def __post_init__(self) -> None:
        check_range(self, "smoothing_s", low=0, prefix="intensity: ")
        _check_source("intensity", curve=self.curve, audio=self.audio)
        for point in self.curve:
            _check_numbers(point, 2, "intensity: a point of curve", "[second, dB]")
        if any(b[0] <= a[0] for a, b in zip(self.curve, self.curve[1:], strict=False)):
            raise ValueError("intensity: the seconds of curve must rise from point to point")

    def build(self, song: SongSpec) -> SoundLoss:
        target = self.target(song.seconds)

        def loss(sound: SoundTensor, start_s: float) -> Float[Tensor, ""]:
            curve = loudness_curve(sound, song.sample_rate, self.smoothing_s)
            curve, goal = _overlap(curve, target, start_s, "intensity")
            if self.relative:
                curve, goal = curve - curve.mean(), goal - goal.mean()
            return F.mse_loss(curve, goal) / TEN_DB_SQUARED

        return loss

    def target(self, seconds: float) -> Float[Tensor, " frame"]:
        """The curve of a song of so many seconds; that of a recording ends with it."""
        if self.audio:
            sound, rate = read_recording(self.audio, "intensity")
            return loudness_curve(sound, rate, self.smoothing_s)
        times = torch.arange(int(seconds / HOP_S) + 2) * HOP_S
        points = torch.tensor([[float(v) for v in point] for point in self.curve])
        place = torch.searchsorted(points[:, 0].contiguous(), times).clamp(1, max(1, len(points) - 1))
        if len(points) == 1:
            return points[0, 1].expand(len(times))
        (t0, d0), (t1, d1) = points[place - 1].unbind(1), points[place].unbind(1)
        return d0 + (d1 - d0) * ((times - t0) / (t1 - t0)).clamp(0, 1)


@dataclass(frozen=True)
class MelodyTarget:
    """Pitch classes over time. The loss is 1 - the mean cosine of the chromagrams, where the target sounds."""

    notes: list[Any] = field(default_factory=list)
    """Notes [start in seconds, end in seconds, MIDI pitch]; 60 is middle C, octaves do not matter."""
    audio: str = field(default="", metadata=INPUT_FILE)
    """Or a recording of the melody."""

    def __post_init__(self) -> None:
        _check_source("melody", notes=self.notes, audio=self.audio)
        for note in self.notes:
            _check_numbers(note, 3, "melody: a note", "[start in seconds, end in seconds, MIDI pitch]")
            if not 0 <= note[0] < note[1]:
                raise ValueError(f"melody: a note must end after it starts, got {list(note)}")
            if not 0 <= note[2] <= 127:
                raise ValueError(f"melody: MIDI pitches are from 0 to 127, got {list(note)}")

    def build(self, song: SongSpec) -> SoundLoss:
        target = self.target(song.seconds)

        def loss(sound: SoundTensor, start_s: float) -> Float[Tensor, ""]:
            chroma, goal = _overlap(chromagram(sound, song.sample_rate), target, start_s, "melody")
            return 1 - chroma_similarity(chroma, goal)

        return loss

    def target(self, seconds: float) -> Float[Tensor, "frame 12"]:
        """The chromagram: of the recording, or with length 1 where notes sound."""
        if self.audio:
            return chromagram(*read_recording(self.audio, "melody"))
        chroma = torch.zeros(int(seconds / HOP_S) + 2, 12)
        if all(start >= seconds for start, _, _ in self.notes):
            raise DataError(f"melody: no note begins within the {seconds:g} s of the song; give earlier ones")
        for start, end, pitch in self.notes:
            chroma[round(start / HOP_S) : round(end / HOP_S), round(pitch) % 12] = 1
        return F.normalize(chroma, dim=1)


def chroma_similarity(
    chroma: Float[Tensor, "frame 12"], target: Float[Tensor, "frame 12"]
) -> Float[Tensor, ""]:
    """Mean cosine over frames, each weighted by how much sounds in the target."""
    weights = target.norm(dim=1)
    cosines = F.cosine_similarity(chroma, target, dim=1, eps=1e-6)
    return (cosines * weights).sum() / weights.sum().clamp(min=1e-6)


@dataclass(frozen=True)
class StructureTarget:
    """The form of another song: which moments are alike. The loss is the mean squared difference of the
    self-similarity matrices, that of the other song stretched to the length of this one."""

    audio: str = field(default="", metadata=INPUT_FILE)
    features: str = "timbre"
    """What makes moments alike: `timbre`, the mel cepstrum, or `harmony`, pitch classes."""
    moment_s: float = 0.5

    def __post_init__(self) -> None:
        _check_source("structure", audio=self.audio)
        check_number(self.moment_s, "structure: moment_s", low=HOP_S)
        if self.features not in ("timbre", "harmony"):
            raise ValueError(f"structure: features must be timbre or harmony, got {self.features!r}")

    def build(self, song: SongSpec) -> SoundLoss:
        matrix = self.matrix(*read_recording(self.audio, "structure"))
        size = int(song.seconds / HOP_S) // self.per_moment
        if min(size, len(matrix)) < 2:
            raise DataError(f"structure: {self.audio} and the song need two moments of moment_s at least")
        target = F.interpolate(matrix[None, None], (size, size), mode="bilinear", align_corners=False)[0, 0]

        def loss(sound: SoundTensor, start_s: float) -> Float[Tensor, ""]:
            song_matrix = self.matrix(sound, song.sample_rate)
            first = min(round(start_s / (self.per_moment * HOP_S)), size - 1)
            count = min(len(song_matrix), size - first)
            part = slice(first, first + count)
            return F.mse_loss(song_matrix[:count, :count], target[part, part])

        return loss

    @property
    def per_moment(self) -> int:
        """Frames in a moment."""
        return max(1, round(self.moment_s / HOP_S))

    def matrix(self, sound: SoundTensor, sample_rate: int) -> Float[Tensor, "moment moment"]:
        """The self-similarity of a sound."""
        compute = mel_cepstrum if self.features == "timbre" else chromagram
        return similarity_matrix(moment_means(compute(sound, sample_rate), self.per_moment))


@dataclass(frozen=True)
class StyleTarget:
    """A style, by the encoder of a bundle. The loss is 1 - the cosine, a mean over windows of 10 s.

    Gradients pass through the spectral profile; the encoder's seven measures (tempo, mode, …) count as constants.
    """

    text: str = ""
    """In words; without text and audio, the style of the song's own prompt."""
    audio: str = field(default="", metadata=INPUT_FILE)
    bundle: str = field(default="", metadata=PATH)
    """Folder of the bundle with the encoder; the shipped one by default."""

    def build(self, song: SongSpec) -> SoundLoss:
        from diffdpo.search.style_loss import build_style_loss

        return build_style_loss(self, song)


TARGETS: Table[type[Any]] = Table(
    "target",
    {
        "intensity": IntensityTarget,
        "melody": MelodyTarget,
        "structure": StructureTarget,
        "style": StyleTarget,
    },
)


@dataclass(frozen=True)
class WeightedTarget:
    """A target and its share in the loss."""

    name: str
    target: SoundTarget
    weight: float = 1.0


def parse_targets(entries: Sequence[Mapping[str, Any]]) -> tuple[WeightedTarget, ...]:
    """Targets from a configuration: each {name, weight, and the arguments of the target}.

    ConfigError or ValueError for a target that does not exist or has a bad argument.
    """
    targets = []
    for entry in entries:
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise ConfigError(
                f"targets: each needs a name, such as {{name: intensity, curve: …}}, got {entry!r}"
            )
        args = {key: value for key, value in entry.items() if key not in ("name", "weight")}
        weight = entry.get("weight", 1.0)
        choice = Choice(str(entry["name"]), args)
        target = bind("target", pick("target", TARGETS, choice.name), choice)()
        _check_numbers([weight], 1, f"targets: weight of {choice.name}", "a number")
        check_number(weight, f"targets: weight of {choice.name}", above=0)
        targets.append(WeightedTarget(choice.name, target, float(weight)))
    return tuple(targets)


def read_recording(path: str, name: str) -> tuple[SoundTensor, int]:
    """A recording as a tensor, and its rate. DataError for a file that is absent or no sound."""
    from diffdpo.audio import read

    if not Path(path).is_file():
        raise DataError(
            f"{name}: there is no recording {path}; give a path relative to the working directory"
        )
    clip = read(path)
    return torch.from_numpy(clip.samples).float(), clip.sample_rate


def _overlap(
    frames: Float[Tensor, "frame *feature"],
    target: Float[Tensor, "point *feature"],
    start_s: float,
    name: str,
) -> tuple[Float[Tensor, "both *feature"], Float[Tensor, "both *feature"]]:
    """Frames of a stretch of a song and those of the target at the same times."""
    first = round(start_s / HOP_S)
    count = min(len(frames), len(target) - first)
    if count < 1:
        raise DataError(f"{name}: the recording ends before {start_s:g} s of the song; give a longer one")
    return frames[:count], target[first : first + count].to(frames)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number, and not NaN or infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_source(name: str, **sources: Any) -> None:
    """ValueError unless exactly one source of a target is given."""
    present = [key for key, value in sources.items() if len(value)]
    if len(present) != 1:
        raise ValueError(f"{name}: needs {' or '.join(sources)}" + (", not both" if present else ""))


def _check_numbers(values: Any, count: int, name: str, form: str) -> None:
    """ValueError unless these are `count` numbers."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    if not is_list or not all(_is_finite(v) for v in values):
        raise ValueError(f"{name} must be {form}, got {values!r}")
