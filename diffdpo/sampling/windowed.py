"""A song model of songs longer than it takes: all its windows at once, joined at every step of the sampler.

MultiDiffusion (Bar-Tal et al. 2023, eq. 5) with soft masks, on latents in time: the velocity of the song is the
mean of its windows' velocities, weighted by shares that are one in all on every frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffdpo.data.prompts import lines_within
from diffdpo.models.base import Condition, LatentSpec, SongModel
from diffdpo.types import Clip, Prompt
from diffdpo.windows import Window


def seen_from(window: Window, prompt: Prompt, pace: float, spec: LatentSpec) -> Prompt:
    """What a window of a song is asked to be, in the terms of excerpts in training: its own length, the lyric lines
    that begin inside, and its place in the song; `pace` is the share of the song that a frame is.
    """
    length, rate = window.stop - window.start, spec.frames_per_second
    lines = prompt.lyric_lines
    if lines is not None:
        lines = lines_within(lines, window.start / rate, window.stop / rate)
    # Half a frame more than there are: no rounding takes one away.
    seconds, start = (length + 0.5) / rate, prompt.start + pace * window.start
    return replace(prompt, duration_s=seconds, start=start, lyric_lines=lines)


def shares(windows: Sequence[Window], fade: int) -> list[Float[Tensor, " frame"]]:
    """How much of each window its frames are made of: linear fades between neighbours, one in all everywhere."""
    rising = (torch.arange(fade) + 0.5) / (fade or 1)
    found = []
    for place, window in enumerate(windows):
        share = torch.zeros(window.stop - window.start)
        used = share[window.first - window.start : window.last - window.start]
        used[:] = 1
        if place > 0:
            used[:fade] = rising
        if place < len(windows) - 1:
            used[len(used) - fade :] = 1 - rising
        found.append(share)
    return found


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A SongModel of songs of one length: its velocity is that of all windows, cross-faded where they overlap.

    Whatever is done with velocities, guidance say, is then done with those of the whole song. In a condition the
    part `audio` stands on the frames of the song, all others have an axis of windows behind that of the batch.
    """

    model: SongModel
    windows: tuple[Window, ...]
    """Of one size; the last ends with the song."""
    pace: float
    """The share of the song that a frame is."""
    fade: int
    batch: int
    """Windows in one forward pass."""

    @property
    def network(self) -> Any:
        return self.model.network

    @property
    def latents(self) -> LatentSpec:
        return replace(self.model.latents, max_frames=self.windows[-1].stop)

    def embed(self, prompt: Prompt) -> Prompt:
        return self.model.embed(prompt)

    def condition(self, prompts: Sequence[Prompt], frames: int) -> Condition:
        size = self.windows[0].stop
        rows = []
        for prompt in prompts:
            parts = [seen_from(window, prompt, self.pace, self.latents) for window in self.windows]
            rows.append(self.model.condition(parts, size))
        condition = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if "audio" in condition:
            condition["audio"] = torch.zeros(len(prompts), frames, self.latents.channels)
        return condition

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "batch frame channel"],
        t: Float[Tensor, " batch"],
        condition: Condition,
        frames: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch frame channel"]:
        """See SongModel."""
        total, count = torch.zeros_like(x), len(self.windows)
        spread = {name: tensor.flatten(0, 1) for name, tensor in condition.items() if name != "audio"}
        if "audio" in condition:
            spread["audio"] = self._cut(condition["audio"])
        pieces, times = self._cut(x), t.repeat_interleave(count)
        sizes = torch.full((len(pieces),), pieces.shape[1])
        made = []
        for part in torch.arange(len(pieces)).split(self.batch):
            here = slice(int(part[0]), int(part[-1]) + 1)
            asked = {name: tensor[here] for name, tensor in spread.items()}
            made.append(self.model.velocity(network, pieces[here], times[here], asked, sizes[here]))
        parts = torch.cat(made).unflatten(0, (len(x), count))
        for place, (window, share) in enumerate(
            zip(self.windows, shares(self.windows, self.fade), strict=True)
        ):
            total[:, window.start : window.stop] += share.to(x)[:, None] * parts[:, place]
        return total

    def _cut(self, whole: Float[Tensor, "batch frame channel"]) -> Float[Tensor, "piece size channel"]:
        """The windows of all songs, those of a song in a row."""
        return torch.stack([whole[:, w.start : w.stop] for w in self.windows], 1).flatten(0, 1)

    def encode(self, clip: Clip) -> Float[Tensor, "frame channel"]:
        return self.model.encode(clip)

    def decode(self, latents: Float[Tensor, "frame channel"], first_frame: int = 0) -> Clip:
        return self.model.decode(latents, first_frame)
