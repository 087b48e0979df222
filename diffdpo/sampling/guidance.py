"""Classifier-free guidance: how the velocities towards a prompt and away from its negative become one.

A form is a frozen dataclass whose fields are its parameters and whose call is a pure function. All statistics
belong to one song and its valid frames, so a song depends neither on its batch nor on its padding (the guiders of
diffusers take them over everything but the batch, padding included).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo.errors import ConfigError
from diffdpo.flow import Latents, Times
from diffdpo.registry import closest, pick

Rows = Int[Tensor, " row"]
PerSong = Float[Tensor, " batch"]
Mask = Bool[Tensor, "batch frame"]


class Branches(NamedTuple):
    """What a form combines, at (x, t)."""

    towards: Latents
    """The velocity for the prompt."""
    away: Latents
    """The velocity for its negative."""
    x: Latents
    t: Times
    mask: Mask
    """True on the frames that exist."""


@runtime_checkable
class Form(Protocol):
    """One way to guide, at a scale s of which 1 is no guidance."""

    @property
    def held_steps(self) -> int:
        """Steps at the beginning over which nothing moves."""

    def __call__(self, at: Branches, scale: float, memory: Latents | None) -> tuple[Latents, Latents | None]:
        """The guided velocity, and what is to be remembered until the next call for the same songs."""


def dot(one: Latents, two: Latents, mask: Mask) -> PerSong:
    """The inner product of each song's valid frames, in at least fp32."""
    wide = torch.promote_types(one.dtype, torch.float32)
    return (one.to(wide) * two.to(wide)).sum(-1).where(mask, 0).sum(-1)


def _wide(values: PerSong) -> Float[Tensor, "batch 1 1"]:
    return rearrange(values, "batch -> batch 1 1")


def _spread(v: Latents, mask: Mask) -> PerSong:
    """Standard deviation over valid frames and channels."""
    count = mask.sum(-1) * v.shape[-1]
    centred = v - _wide(dot(v, torch.ones_like(v), mask) / count).to(v)
    return (dot(centred, centred, mask) / (count - 1).clamp(min=1)).sqrt()


@dataclass(frozen=True)
class Plain:
    """v = away + s (towards - away) (Ho and Salimans 2022)."""

    held_steps: ClassVar[int] = 0

    def __call__(self, at: Branches, scale: float, memory: Latents | None) -> tuple[Latents, Latents | None]:
        return at.away + scale * (at.towards - at.away), memory


@dataclass(frozen=True)
class Rescaled:
    """Plain, then brought back towards the spread of the unguided velocity (Lin et al. 2023, section 3.4)."""

    rescale: float = 0.7
    """0 is plain guidance, 1 the spread of the prompt's own velocity."""
    held_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")

    def __call__(self, at: Branches, scale: float, memory: Latents | None) -> tuple[Latents, Latents | None]:
        v, _ = Plain()(at, scale, None)
        ratio = _spread(at.towards, at.mask) / _spread(v, at.mask).clamp(min=1e-8)
        return v * _wide(1 + self.rescale * (ratio - 1)).to(v), memory


@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero* (Fan et al. 2025): the negative at its best scale, and nothing over the first steps.

    a = <towards, away> / |away|^2;  v = a away + s (towards - a away).
    """

    held_steps: int = 1
    """Steps at the beginning over which the velocity is zero; the paper holds 4 % of them."""

    def __post_init__(self) -> None:
        if not (self.held_steps >= 0 and self.held_steps == int(self.held_steps)):
            raise ValueError(f"held_steps must be a whole number of at least 0, got {self.held_steps}")

    def __call__(self, at: Branches, scale: float, memory: Latents | None) -> tuple[Latents, Latents | None]:
        best = dot(at.towards, at.away, at.mask) / dot(at.away, at.away, at.mask).clamp(min=1e-8)
        away = at.away * _wide(best).to(at.away)
        return away + scale * (at.towards - away), memory


@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1), on the predicted songs D = x - t v.

    The difference of the two songs, with momentum, its size limited, is split into the part along the prompt's
    song, which saturates, and the part across it: D = D_towards + (s - 1) (across + parallel * along).
    """

    parallel: float = 0.0
    """How much of the part along the song is kept; 1 keeps all of it."""
    limit: float = 0.0
    """Largest root mean square of the difference over a song's frames and channels; 0 is no limit. The paper's
    radius r is limit * sqrt(frames * channels): here songs differ in length."""
    momentum: float = 0.0
    """How much of the last differences is added; the paper takes -0.5."""
    held_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not (0 <= self.limit < float("inf") and 0 <= self.parallel < float("inf")):
            raise ValueError(
                f"limit and parallel must be numbers of at least 0, got {self.limit} and {self.parallel}"
            )
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum must be between -1 and 1, got {self.momentum}")

    def __call__(self, at: Branches, scale: float, memory: Latents | None) -> tuple[Latents, Latents | None]:
        t = _wide(at.t).to(at.x)
        song = at.x - t * at.towards
        difference = t * (at.away - at.towards)
        if memory is not None:
            difference = difference + self.momentum * memory
        remembered = difference if self.momentum else None
        if self.limit:
            count = at.mask.sum(-1) * song.shape[-1]
            size = (dot(difference, difference, at.mask) / count).sqrt().clamp(min=1e-8)
            difference = difference * _wide((self.limit / size).clamp(max=1)).to(song)
        share = dot(difference, song, at.mask) / dot(song, song, at.mask).clamp(min=1e-8)
        along = song * _wide(share).to(song)
        update = difference - along + self.parallel * along
        return at.towards - (scale - 1) * update / t, remembered


FORMS: dict[str, type[Form]] = {
    "plain": Plain,
    "rescaled": Rescaled,
    "zero_star": ZeroStar,
    "apg": Projected,
}


def build_form(name: str, args: Mapping[str, float]) -> Form:
    """A form by name; a ConfigError or ValueError for a name, an argument or a value it does not know."""
    form = pick("guidance form", FORMS, name)
    known = [f.name for f in fields(form)]  # type: ignore[arg-type]  # all forms are dataclasses
    for key, value in args.items():
        if key not in known:
            raise ConfigError(
                f"guidance form {name!r} has no {key!r}.{closest(key, known)} Known: {', '.join(known) or 'none'}."
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{key} of guidance form {name!r} must be a number, got {value!r}")
    return form(**args)


@dataclass(frozen=True)
class Guidance:
    """The scale, the form, and when the negative is asked."""

    scale: float
    form: Form
    low: float = 0.0
    high: float = 1.0
    """Guided only at t in [low, high] (Kynkäänniemi et al. 2024); elsewhere the negative is not computed."""
    every: int = 1
    """The negative is computed at every so many evaluations; what guidance added is reused in between."""


Evaluate = Callable[[Latents, Times, Rows], Latents]
"""Velocities at (x, t) of rows of a stack [towards; away], each as long as the batch."""


class Guided:
    """The guided velocity of some songs of a batch. Remembers, song by song, what its form wants remembered."""

    def __init__(self, evaluate: Evaluate, mask: Mask, guidance: Guidance) -> None:
        self.evaluate, self.mask, self.guidance = evaluate, mask, guidance
        self.passes = torch.zeros(len(mask), dtype=torch.long)
        """Network passes of each song so far, both branches counted."""
        self.calls = 0
        self.added: dict[int, Tensor] = {}
        self.memory: dict[int, Tensor] = {}

    def __call__(self, x: Latents, t: Times, songs: Rows) -> Latents:
        """At (x, t) of `songs`; `t` and `songs` are on the CPU, so that no decision waits for a GPU."""
        inside = self._inside(t)
        asked = torch.tensor(
            [ok and self._due(song) for ok, song in zip(inside.tolist(), songs.tolist(), strict=True)]
        )
        self.calls += 1
        which = asked.nonzero().squeeze(1)
        rows = torch.cat([songs, songs[which] + len(self.mask)])
        self.passes[songs] += 1 + asked.long()
        index = torch.cat([torch.arange(len(songs)), which]).to(x.device)
        v = self.evaluate(x[index], t[index.cpu()], rows)
        towards = v[: len(songs)]
        guided = towards.clone()
        if len(which):
            here = which.to(x.device)
            mask = self.mask[songs[which].to(self.mask.device)]
            at = Branches(towards[here], v[len(songs) :], x[here], t[which], mask)
            guided[here] = self._combine(at, songs[which])
        for place in (inside & ~asked).nonzero().squeeze(1).tolist():
            guided[place] += self.added[int(songs[place])]
        return guided

    def _inside(self, t: Times) -> Bool[Tensor, " batch"]:
        guidance = self.guidance
        return (t >= guidance.low) & (t <= guidance.high) & (guidance.scale != 1)

    def _due(self, song: int) -> bool:
        return self.calls % self.guidance.every == 0 or song not in self.added

    def _combine(self, at: Branches, songs: Rows) -> Latents:
        known = [self.memory.get(song) for song in songs.tolist()]
        memory = None
        if any(m is not None for m in known):
            nothing = torch.zeros_like(at.x[0])
            memory = torch.stack([nothing if m is None else m for m in known])
        guided, memory = self.guidance.form(at, self.guidance.scale, memory)
        for row, song in enumerate(songs.tolist()):
            if memory is not None:
                self.memory[song] = memory[row]
            if self.guidance.every > 1:
                self.added[song] = guided[row] - at.towards[row]
        return guided


class Reused:
    """A velocity that is extrapolated where it is expected to have changed little since it was last computed.

    Each song decides for itself, by how fast its velocity changed between the last two times it was computed: the
    first term of TaylorSeer (Liu et al. 2025), at times chosen as in EasyCache (Zhou et al. 2025).
    """

    def __init__(self, guided: Guided, threshold: float) -> None:
        self.guided, self.threshold = guided, threshold
        self.seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """The last two (t, velocity) of each song."""

    @property
    def mask(self) -> Mask:
        """True on the frames that exist."""
        return self.guided.mask

    @property
    def passes(self) -> Int[Tensor, " batch"]:
        """Network passes of each song so far, both branches of guidance counted."""
        return self.guided.passes

    def __call__(self, x: Latents, t: Times) -> Latents:
        songs = torch.tensor([song for song in range(len(x)) if not self._unchanged(song, t[song])])
        fresh: dict[int, Tensor] = {}
        if len(songs):
            computed = self.guided(x[songs.to(x.device)], t[songs], songs)
            fresh = dict(zip(songs.tolist(), computed, strict=True))
        if not self.threshold:
            return computed
        for song, v in fresh.items():
            self.seen[song] = [*self.seen.get(song, [])[-1:], (t[song], v)]
        return torch.stack(
            [fresh[song] if song in fresh else self._extrapolated(song, t[song]) for song in range(len(x))]
        )

    def _unchanged(self, song: int, t: Tensor) -> bool:
        known = self.seen.get(song, [])
        if len(known) < 2:
            return False
        (t0, v0), (t1, v1) = known
        mask = self.mask[song][None]
        change, size = ((dot(v[None], v[None], mask)).sqrt() for v in (v1 - v0, v1))
        share = float(change / size.clamp(min=1e-8)) * float((t - t1) / (t1 - t0))
        return share < self.threshold

    def _extrapolated(self, song: int, t: Tensor) -> Tensor:
        (t0, v0), (t1, v1) = self.seen[song]
        return v1 + float((t - t1) / (t1 - t0)) * (v1 - v0)
