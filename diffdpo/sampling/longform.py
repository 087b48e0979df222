"""Songs of any length from windows of a model's length, and parts of songs generated anew.

Two ways across the border of two windows. `continue`: one window after another, each shown the overlap that
exists already as its in-painting context. `joint`: all windows at every solver step, their velocities
cross-faded where they overlap (MultiDiffusion, Bar-Tal et al. 2023, eq. 5 with soft masks), on one noise.
Generating a span of an existing song anew, and extending a song, are the same thing with more of the song
given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.models.base import LatentSpec, SongModel
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import InitLatents, InpaintContext, Request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.sampling.variants import NO_INTERVENTIONS, Interventions
from diffdpo.sampling.windowed import WindowedModel, window_row
from diffdpo.types import Row
from diffdpo.windows import Chunks, Window


@dataclass(frozen=True)
class LongformConfig:
    """Configuration of songs longer than a window."""

    method: Literal["continue", "joint"] = "continue"
    """continue: window after window, the overlap given; can be heard while it is generated. joint: all windows at
    once, velocities cross-faded on the overlaps."""
    window_s: float = 0.0
    """Length of a window; 0: the longest the model takes. Best what the network was trained on."""
    overlap_s: float = 6.0
    """Length of the overlap of neighbouring windows."""
    clamp_context: bool = True
    """Given frames go straight from noise to what they are, as in training, and are not guided by; false, as
    published: they go where the network takes them, are pasted over at the end, and guidance exaggerates them."""

    def __post_init__(self) -> None:
        check_range(self, "window_s", low=0, prefix="longform.")
        check_range(self, "overlap_s", above=0, prefix="longform.")
        if self.window_s and 2 * self.overlap_s >= self.window_s:
            raise ValueError(
                f"longform.overlap_s={self.overlap_s:g} must be less than half of window_s={self.window_s:g}"
            )

    def chunks(self, spec: LatentSpec) -> Chunks:
        """Size, overlap and fade of the windows in frames of a model."""
        size = min(spec.frames(self.window_s), spec.max_frames) if self.window_s else spec.max_frames
        overlap = 2 * (min(int(self.overlap_s * spec.frames_per_second), (size - 1) // 2) // 2)
        return Chunks(size=size, overlap=overlap, fade=overlap)


@dataclass(frozen=True, eq=False, kw_only=True)
class SongRequest:
    """One song to be generated, or to be generated anew in part, of any length."""

    sample_id: str
    row: Row
    """The condition of the whole song."""
    negative: Row | None = None
    """The condition of the negative prompt, likewise of the whole song."""
    context: InpaintContext | None = None
    """Latents of a song, and which of its frames stay."""
    strength: float = 1.0
    """Below 1, sampling begins from `context`, noised up to t = strength."""
    noise: Float[Tensor, "frame channel"] | None = None
    """The noise that the song begins with; None: drawn by seed and sample id."""
    axis_rows: Mapping[str, Row] = field(default_factory=dict)
    """The condition of the whole song with a preference axis in the prompt, by axis, for knobs that name it."""


@dataclass(eq=False)
class SongDraft:
    """A song while it is being generated."""

    request: SongRequest
    latents: Float[Tensor, "frame channel"]
    final_mask: Bool[Tensor, " frame"]
    groups: list[list[Window]]
    open_windows: list[Window]
    """Windows that are still to be generated if one follows another, in order."""

    def put_window(self, latents: Float[Tensor, "frame channel"]) -> Window:
        """Put the latents of the next open window in their place."""
        window = self.open_windows.pop(0)
        _put(self, window.start, latents)
        return window

    def branch(self, request: SongRequest) -> "SongDraft":
        """A copy that goes on as another song: under its own condition, with its own noise."""
        return replace(
            self,
            request=request,
            latents=self.latents.clone(),
            final_mask=self.final_mask.clone(),
            open_windows=list(self.open_windows),
        )

    @property
    def complete_frames(self) -> int:
        """Frames at the beginning that will not change any more."""
        open_frames = (~self.final_mask).nonzero()
        return int(open_frames[0]) if len(open_frames) else len(self.final_mask)


OnFrames = Callable[[str, Float[Tensor, "frame channel"], int], None]
"""Callback with a sample id, its latents and the number of its first frames that are final."""


def compose(
    model: SongModel,
    songs: Sequence[SongRequest],
    cfg: SamplingConfig,
    longform: LongformConfig,
    *,
    seed: int,
    on_step: Callable[[], None] | None = None,
    on_frames: OnFrames | None = None,
    interventions: Interventions = NO_INTERVENTIONS,
) -> list[Float[Tensor, "_ channel"]]:
    """Latents of a batch of songs of any length, each of its row's length, on the CPU in float32.

    A song that fits a window is what `sampler.sample_batch` makes of it. Given frames come back unchanged.
    """
    sample_songs = partial(sample_batch, cfg=cfg, seed=seed, on_step=on_step, interventions=interventions)
    drafts = [begin_draft(model.spec, song, longform) for song in songs]
    joint_drafts = [draft for draft in drafts if longform.method == "joint" and _has_seams(draft.groups)]
    chained_drafts = [draft for draft in drafts if draft not in joint_drafts]
    for draft in joint_drafts:
        for windows in draft.groups:
            _sample_jointly(model, draft, windows, cfg.batch, longform, sample_songs)
            _report(draft, on_frames)
    while open_drafts := [draft for draft in chained_drafts if draft.open_windows]:
        _extend(model, open_drafts, longform, sample_songs, on_frames)
    return [draft.latents for draft in drafts]


def extend_drafts(
    model: SongModel,
    drafts: Sequence[SongDraft],
    cfg: SamplingConfig,
    longform: LongformConfig,
    *,
    seed: int,
    interventions: Interventions = NO_INTERVENTIONS,
) -> None:
    """Generate the next open window of each draft, all in one batch, with what exists of its song as context."""
    sample_songs = partial(sample_batch, cfg=cfg, seed=seed, interventions=interventions)
    _extend(model, drafts, longform, sample_songs, None)


def _extend(
    model: SongModel,
    drafts: Sequence[SongDraft],
    longform: LongformConfig,
    sample_songs: Callable[..., list[Float[Tensor, "_ channel"]]],
    on_frames: OnFrames | None,
) -> None:
    requests = [window_request(draft, draft.open_windows[0], longform.clamp_context) for draft in drafts]
    for draft, latents in zip(drafts, sample_songs(model, requests), strict=True):
        draft.put_window(latents)
        _report(draft, on_frames)


def count_steps(
    spec: LatentSpec, to_generate: Sequence[Bool[Tensor, " _"]], cfg: SamplingConfig, longform: LongformConfig
) -> int:
    """Number of calls of `on_step` by `compose` for a batch of songs, by the masks of frames to generate."""
    chunks = longform.chunks(spec)
    plans = [(mask, window_groups(mask, chunks)) for mask in to_generate]
    joint_flags = [longform.method == "joint" and _has_seams(groups) for _, groups in plans]
    n_joint = sum(len(groups) for (_, groups), joint in zip(plans, joint_flags, strict=True) if joint)
    n_turns = [
        len(order_windows(groups, mask))
        for (mask, groups), joint in zip(plans, joint_flags, strict=True)
        if not joint
    ]
    return cfg.steps * (n_joint + max(n_turns, default=0))


def window_groups(to_generate: Bool[Tensor, " frame"], chunks: Chunks) -> list[list[Window]]:
    """The windows in which the frames that are True are generated, grouped by stretches of the song.

    Each stretch includes up to an overlap of what is given on either side, and more where a window has room;
    stretches whose windows would meet are one. A song of one window is one stretch.
    """
    length = len(to_generate)
    if length <= chunks.size:
        return [[Window(0, length, 0, length)]] if to_generate.any() else []
    return [
        [Window(*(low + frame for frame in window)) for window in chunks.windows(high - low)]
        for low, high in _stretches(to_generate, chunks)
    ]


def _stretches(to_generate: Bool[Tensor, " frame"], chunks: Chunks) -> list[tuple[int, int]]:
    """Parts of the song, each at least a window wide, that hold all frames to generate and do not overlap."""
    length = len(to_generate)
    border = torch.tensor([False])
    edges = torch.cat([border, to_generate, border]).int().diff()
    starts, stops = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    stretches: list[tuple[int, int]] = []
    for start, stop in zip(starts, stops, strict=True):
        low, high = max(0, start - chunks.overlap), min(length, stop + chunks.overlap)
        width = max(chunks.size, high - low)
        low = min(max(0, low - (width - (high - low)) // 2), length - width)
        high = low + width
        if stretches and low < stretches[-1][1]:
            last = stretches.pop()
            low, high = last[0], max(high, last[1])
        stretches.append((low, high))
    return stretches


def order_windows(groups: Sequence[Sequence[Window]], to_generate: Bool[Tensor, " frame"]) -> list[Window]:
    """The windows with frames to generate, in an order in which each window joins frames that exist.

    A group with given frames at its end only is generated backwards.
    """
    order: list[Window] = []
    open_mask = to_generate.clone()
    for windows in groups:
        backwards = bool(to_generate[windows[0].start]) and not to_generate[windows[-1].stop - 1]
        for window in reversed(windows) if backwards else windows:
            if open_mask[window.start : window.stop].any():
                order.append(window)
                open_mask[window.start : window.stop] = False
    return order


def _sample_jointly(
    model: SongModel,
    draft: SongDraft,
    windows: Sequence[Window],
    batch: int,
    longform: LongformConfig,
    sample_songs: Callable[..., list[Float[Tensor, "_ channel"]]],
) -> None:
    """Generate a stretch of a song in all its windows at once."""
    low, high = windows[0].start, windows[-1].stop
    request = window_request(draft, Window(low, high, low, high), longform.clamp_context)
    local_windows = tuple(Window(*(frame - low for frame in window)) for window in windows)
    fade = longform.chunks(model.spec).fade
    windowed_model = WindowedModel(base_model=model, windows=local_windows, fade=fade, batch=batch)
    (latents,) = sample_songs(windowed_model, [request])
    _put(draft, low, latents)


def begin_draft(spec: LatentSpec, song: SongRequest, longform: LongformConfig) -> SongDraft:
    """A song of which nothing exists but what is given."""
    length = song.row.frames
    final_mask = torch.zeros(length, dtype=torch.bool)
    latents = torch.zeros(length, spec.channels)
    if song.context is not None:
        if song.context.latents.shape != latents.shape:
            raise ValueError(
                f"{song.sample_id}: the context has latents {tuple(song.context.latents.shape)}, the prompt asks "
                f"for {tuple(latents.shape)}"
            )
        final_mask, latents = song.context.keep_mask.clone(), song.context.latents.float().clone()
    groups = window_groups(~final_mask, longform.chunks(spec))
    return SongDraft(song, latents, final_mask, groups, order_windows(groups, ~final_mask))


def _has_seams(groups: Sequence[Sequence[Window]]) -> bool:
    return any(len(windows) > 1 for windows in groups)


def _put(draft: SongDraft, start: int, latents: Float[Tensor, "frame channel"]) -> None:
    draft.latents[start : start + len(latents)] = latents
    draft.final_mask[start : start + len(latents)] = True


def _report(draft: SongDraft, on_frames: OnFrames | None) -> None:
    if on_frames is not None:
        on_frames(draft.request.sample_id, draft.latents, draft.complete_frames)


def window_request(draft: SongDraft, window: Window, clamp_context: bool) -> Request:
    """The request for one window of a song; frames that exist are its context."""
    frames, song = slice(window.start, window.stop), draft.request
    keep = draft.final_mask[frames]
    return Request(
        sample_id=song.sample_id,
        row=window_row(song.row, window),
        negative=None if song.negative is None else window_row(song.negative, window),
        axis_rows={axis: window_row(row, window) for axis, row in song.axis_rows.items()},
        context=InpaintContext(draft.latents[frames].clone(), keep.clone()) if keep.any() else None,
        init=InitLatents(draft.latents[frames].clone(), song.strength) if song.strength < 1 else None,
        clamp_context=clamp_context,
        noise=song.noise,
    )
