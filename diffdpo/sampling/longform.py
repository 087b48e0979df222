"""Songs of any length from windows the model knows, and parts of songs made anew.

Two ways across the border of two windows. `continue`: one window after another, each shown the overlap that is
already there as its in-painting condition. `joint`: all windows at every step of the sampler, their velocities
cross-faded where they overlap (MultiDiffusion, Bar-Tal et al. 2023, eq. 5 with soft masks), on one noise. Making
a stretch of an existing song anew, and extending a song, are the same thing with more given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.models.base import LatentSpec, SongModel
from diffdpo.sampling.denoising import Context, SamplingConfig
from diffdpo.sampling.sampler import Origin, Request, sample
from diffdpo.sampling.windowed import Joined, seen_from
from diffdpo.types import Prompt
from diffdpo.windows import Chunks, Window


@dataclass(frozen=True)
class LongformConfig:
    """Songs longer than a window."""

    method: Literal["continue", "joint"] = "continue"
    """continue: window after window, the overlap given; can be heard while it is made. joint: all windows at once,
    velocities cross-faded on the overlaps."""
    window_s: float = 0.0
    """Length of a window; 0: the longest the model takes. Best what the network was trained on."""
    overlap_s: float = 6.0
    """What neighbouring windows share."""
    pin: bool = True
    """What is there already goes straight from noise to what it is, as in training, and is not guided by; false, as
    published: it goes where the network takes it, is pasted over at the end, and guidance exaggerates it."""

    def __post_init__(self) -> None:
        if not 0 <= self.window_s < float("inf"):
            raise ValueError(f"longform.window_s must be seconds of at least 0, got {self.window_s}")
        if not 0 < self.overlap_s < float("inf"):
            raise ValueError(f"longform.overlap_s must be positive, got {self.overlap_s}")
        if self.window_s and 2 * self.overlap_s >= self.window_s:
            raise ValueError(
                f"longform.overlap_s={self.overlap_s:g} must be less than half of window_s={self.window_s:g}"
            )

    def chunks(self, spec: LatentSpec) -> Chunks:
        """The windows in frames of a model."""
        size = min(spec.frames(self.window_s), spec.max_frames) if self.window_s else spec.max_frames
        overlap = 2 * (min(spec.frames(self.overlap_s), (size - 1) // 2) // 2)
        return Chunks(size=size, overlap=overlap, fade=overlap)


@dataclass(frozen=True)
class Song:
    """One song to be made, or to be made anew in part."""

    sample_id: str
    prompt: Prompt
    """Of the whole song, embedded."""
    given: Context | None = field(default=None, compare=False)
    """A song of which frames stay."""
    strength: float = 1.0
    """Below 1, sampling begins from `given`, noised up to t = strength."""


@dataclass(eq=False)
class _Draft:
    """A song in the making."""

    song: Song
    latents: Float[Tensor, "frame channel"]
    known: Bool[Tensor, " frame"]
    stretches: list[list[Window]]

    @property
    def finished(self) -> int:
        """Frames at the beginning that will not change any more."""
        missing = (~self.known).nonzero()
        return int(missing[0]) if len(missing) else len(self.known)


Heard = Callable[[str, Float[Tensor, "frame channel"], int], None]
"""Told a sample id, its latents and how many of its first frames are final, whenever there may be more."""


def compose(
    model: SongModel,
    songs: Sequence[Song],
    cfg: SamplingConfig,
    longform: LongformConfig,
    *,
    seed: int,
    on_step: Callable[[], None] | None = None,
    on_finished: Heard | None = None,
) -> list[Float[Tensor, "_ channel"]]:
    """Latents of a batch of songs of any length, each as long as its prompt asks, on the CPU in float32.

    A song that fits a window is what `sampling.sample` makes of it. Frames that are given come back as they were.
    """
    chunks = longform.chunks(model.latents)
    drafts = [_draft(model.latents, song, chunks) for song in songs]
    jointly = [draft for draft in drafts if longform.method == "joint" and _parted(draft.stretches)]
    turns = {draft: in_turn(draft.stretches, ~draft.known) for draft in drafts if draft not in jointly}
    for draft in jointly:
        for windows in draft.stretches:
            _paint_jointly(model, draft, windows, cfg, longform, seed=seed, on_step=on_step)
            _tell(draft, on_finished)
    for turn in range(max(map(len, turns.values()), default=0)):
        live = [(draft, windows[turn]) for draft, windows in turns.items() if turn < len(windows)]
        requests = [_request(model.latents, draft, window, longform.pin) for draft, window in live]
        made = sample(model, requests, cfg, seed=seed, on_step=on_step)
        for (draft, window), latents in zip(live, made, strict=True):
            _put(draft, window.start, latents)
            _tell(draft, on_finished)
    return [draft.latents for draft in drafts]


def steps(
    spec: LatentSpec, missing: Sequence[Bool[Tensor, " _"]], cfg: SamplingConfig, longform: LongformConfig
) -> int:
    """How often `compose` calls `on_step` for a batch of songs of which these frames are to be made."""
    chunks = longform.chunks(spec)
    plans = [(made, plan(made, chunks)) for made in missing]
    jointly = [longform.method == "joint" and _parted(stretches) for _, stretches in plans]
    apart = sum(len(stretches) for (_, stretches), joint in zip(plans, jointly, strict=True) if joint)
    turns = [
        len(in_turn(stretches, made))
        for (made, stretches), joint in zip(plans, jointly, strict=True)
        if not joint
    ]
    return cfg.steps * (apart + max(turns, default=0))


def plan(made: Bool[Tensor, " frame"], chunks: Chunks) -> list[list[Window]]:
    """The windows in which the frames that are True are made, those of each stretch of the song apart.

    A missing stretch is looked at with up to an overlap of what is given on either side, and more where a window
    has room; stretches whose windows would meet are one. A song of one window is one stretch.
    """
    length = len(made)
    if length <= chunks.size:
        return [[Window(0, length, 0, length)]] if made.any() else []
    return [
        [Window(*(low + at for at in window)) for window in chunks.windows(high - low)]
        for low, high in _stretches(made, chunks)
    ]


def _stretches(made: Bool[Tensor, " frame"], chunks: Chunks) -> list[tuple[int, int]]:
    """Parts of the song, each at least a window wide, that hold all missing frames and do not overlap."""
    length = len(made)
    edges = torch.cat([torch.tensor([False]), made, torch.tensor([False])]).int().diff()
    starts, stops = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    found: list[tuple[int, int]] = []
    for start, stop in zip(starts, stops, strict=True):
        low, high = max(0, start - chunks.overlap), min(length, stop + chunks.overlap)
        width = max(chunks.size, high - low)
        low = min(max(0, low - (width - (high - low)) // 2), length - width)
        high = low + width
        if found and low < found[-1][1]:
            before = found.pop()
            low, high = before[0], max(high, before[1])
        found.append((low, high))
    return found


def in_turn(stretches: Sequence[Sequence[Window]], made: Bool[Tensor, " frame"]) -> list[Window]:
    """The windows that hold something to be made, in the order in which each joins to what is there before it.

    A stretch that only its end joins to something given is made backwards.
    """
    order: list[Window] = []
    missing = made.clone()
    for windows in stretches:
        backwards = bool(made[windows[0].start]) and not made[windows[-1].stop - 1]
        for window in reversed(windows) if backwards else windows:
            if missing[window.start : window.stop].any():
                order.append(window)
                missing[window.start : window.stop] = False
    return order


def _paint_jointly(
    model: SongModel,
    draft: _Draft,
    windows: Sequence[Window],
    cfg: SamplingConfig,
    longform: LongformConfig,
    *,
    seed: int,
    on_step: Callable[[], None] | None,
) -> None:
    """Make a stretch of a song in all its windows at once."""
    low, high = windows[0].start, windows[-1].stop
    request = _request(model.latents, draft, Window(low, high, low, high), longform.pin)
    inside = [Window(*(at - low for at in window)) for window in windows]
    fade = longform.chunks(model.latents).fade
    joined = Joined(model=model, windows=tuple(inside), pace=_pace(draft), fade=fade, batch=cfg.batch)
    (latents,) = sample(joined, [request], cfg, seed=seed, on_step=on_step)
    _put(draft, low, latents)


def _draft(spec: LatentSpec, song: Song, chunks: Chunks) -> _Draft:
    length = spec.frames(song.prompt.duration_s)
    known = torch.zeros(length, dtype=torch.bool)
    latents = torch.zeros(length, spec.channels)
    if song.given is not None:
        if song.given.latents.shape != latents.shape:
            raise ValueError(
                f"{song.sample_id}: given are latents {tuple(song.given.latents.shape)}, the prompt asks for "
                f"{tuple(latents.shape)}"
            )
        known, latents = song.given.keep.clone(), song.given.latents.float().clone()
    return _Draft(song, latents, known, plan(~known, chunks))


def _parted(stretches: Sequence[Sequence[Window]]) -> bool:
    return any(len(windows) > 1 for windows in stretches)


def _put(draft: _Draft, start: int, latents: Float[Tensor, "frame channel"]) -> None:
    draft.latents[start : start + len(latents)] = latents
    draft.known[start : start + len(latents)] = True


def _tell(draft: _Draft, on_finished: Heard | None) -> None:
    if on_finished is not None:
        on_finished(draft.song.sample_id, draft.latents, draft.finished)


def _request(spec: LatentSpec, draft: _Draft, window: Window, pin: bool) -> Request:
    """One window as a request of its own: what is there of it as its condition, the song's noise on its frames."""
    frames, song = slice(window.start, window.stop), draft.song
    keep, prompt = draft.known[frames], song.prompt
    if len(keep) < len(draft.known):
        prompt = seen_from(window, prompt, _pace(draft), spec)
    return Request(
        song.sample_id,
        prompt,
        context=Context(draft.latents[frames].clone(), keep.clone()) if keep.any() else None,
        origin=Origin(draft.latents[frames].clone(), song.strength) if song.strength < 1 else None,
        first_frame=window.start,
        pin=pin,
    )


def _pace(draft: _Draft) -> float:
    """The share of a song that a frame is. A prompt that does not begin its song is taken to end it."""
    return (1 - draft.song.prompt.start) / len(draft.known)
