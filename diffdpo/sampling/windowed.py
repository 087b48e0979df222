"""A song model of songs longer than its network takes: all windows of a song at once, joined at every solver step.

MultiDiffusion (Bar-Tal et al. 2023, eq. 5) with soft masks, on latents in time: the velocity of the song is the
mean of its windows' velocities, weighted by shares that sum to one on every frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from diffdpo.models.base import Condition, LatentSpec, SongModel
from diffdpo.types import Clip, Embedding, Prompt, Row
from diffdpo.windows import Window


def window_row(row: Row, window: Window) -> Row:
    """The row of one window of a row's song."""
    return Row(
        embedding=row.embedding,
        frames=window.stop - window.start,
        first_frame=row.first_frame + window.start,
        song_frames=row.total_frames,
    )


def window_shares(windows: Sequence[Window], fade: int) -> list[Float[Tensor, " frame"]]:
    """The weight of each window on its frames: linear fades between neighbours, one in sum on every frame."""
    ramp = (torch.arange(fade) + 0.5) / (fade or 1)
    shares = []
    for place, window in enumerate(windows):
        share = torch.zeros(window.stop - window.start)
        body = share[window.first - window.start : window.last - window.start]
        body[:] = 1
        if place > 0:
            body[:fade] = ramp
        if place < len(windows) - 1:
            body[len(body) - fade :] = 1 - ramp
        shares.append(share)
    return shares


@dataclass(frozen=True, kw_only=True)
class WindowedModel:
    """A SongModel whose velocity is that of all windows of a song, cross-faded where they overlap.

    So guidance and all other functions of velocities get those of the whole song. Tensors of a
    condition have an axis of windows behind that of the rows. All songs have the length of the last window's end.
    """

    base_model: SongModel
    windows: tuple[Window, ...]
    """Windows of one size; the last ends with the song."""
    fade: int
    """Frames over which neighbours cross-fade."""
    batch: int
    """Windows in one forward pass."""

    @property
    def network(self) -> Any:
        return self.base_model.network

    @property
    def spec(self) -> LatentSpec:
        return replace(self.base_model.spec, max_frames=self.windows[-1].stop)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        return self.base_model.lora_targets

    @property
    def parts(self) -> tuple[str, ...]:
        return self.base_model.parts

    @property
    def unconditional(self) -> tuple[str, ...]:
        return self.base_model.unconditional

    @property
    def fingerprint(self) -> str:
        return self.base_model.fingerprint

    @property
    def timed_lyrics(self) -> bool:
        return self.base_model.timed_lyrics

    @property
    def embeds_audio(self) -> bool:
        return self.base_model.embeds_audio

    def embed(self, prompt: Prompt) -> Embedding:
        return self.base_model.embed(prompt)

    def condition(self, rows: Sequence[Row], length: int) -> Condition:
        """See SongModel."""
        flat = [window_row(row, window) for row in rows for window in self.windows]
        condition = self.base_model.condition(flat, self.windows[0].stop)
        return {name: tensor.unflatten(0, (len(rows), -1)) for name, tensor in condition.items()}

    def without(self, condition: Condition, part: str, drop_mask: Bool[Tensor, " row"]) -> Condition:
        """See SongModel."""
        window_mask = drop_mask.repeat_interleave(len(self.windows))
        return self._map_windows(condition, lambda flat: self.base_model.without(flat, part, window_mask))

    def with_context(
        self,
        condition: Condition,
        latents: Float[Tensor, "row frame channel"],
        keep_mask: Bool[Tensor, "row frame"],
    ) -> Condition:
        """See Inpaints."""
        inner: Any = self.base_model
        return self._map_windows(
            condition,
            lambda flat: inner.with_context(flat, self._cut_windows(latents), self._cut_windows(keep_mask)),
        )

    def prepare(self, network: Any, condition: Condition, frames: Int[Tensor, " row"]) -> Condition:
        """See Prepares."""
        inner: Any = self.base_model
        sizes = torch.full((len(frames) * len(self.windows),), self.windows[0].stop)
        return self._map_windows(condition, lambda flat: inner.prepare(network, flat, sizes))

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "row frame channel"],
        t: Float[Tensor, " row"],
        condition: Condition,
        frames: Int[Tensor, " row"],
    ) -> Float[Tensor, "row frame channel"]:
        """See SongModel."""
        count, cuts = len(self.windows), self._cut_windows(x)
        times = t.repeat_interleave(count)
        sizes = torch.full((len(cuts),), cuts.shape[1])
        flat = {name: tensor.flatten(0, 1) for name, tensor in condition.items()}
        velocities = []
        for first in range(0, len(cuts), self.batch):
            part = slice(first, first + self.batch)
            rows = {name: tensor[part] for name, tensor in flat.items()}
            velocities.append(self.base_model.velocity(network, cuts[part], times[part], rows, sizes[part]))
        by_window = torch.cat(velocities).unflatten(0, (len(x), count)).unbind(1)
        total = torch.zeros_like(x)
        for window, share, v in zip(
            self.windows, window_shares(self.windows, self.fade), by_window, strict=True
        ):
            padding = (0, 0, window.start, x.shape[1] - window.stop)
            total = total + torch.nn.functional.pad(share.to(x)[:, None] * v, padding)
        return total

    def _map_windows(self, condition: Condition, function: Callable[[Condition], Condition]) -> Condition:
        """A function of conditions of windows, applied to those of songs."""
        flat = function({name: tensor.flatten(0, 1) for name, tensor in condition.items()})
        return {name: tensor.unflatten(0, (-1, len(self.windows))) for name, tensor in flat.items()}

    def _cut_windows(
        self, songs: Shaped[Tensor, "row frame *channel"]
    ) -> Shaped[Tensor, "cut size *channel"]:
        """The windows of all songs, those of a song one after another."""
        return torch.stack([songs[:, w.start : w.stop] for w in self.windows], 1).flatten(0, 1)

    def encode(self, clip: Clip, generator: torch.Generator | None = None) -> Float[Tensor, "frame channel"]:
        return self.base_model.encode(clip, generator)

    def decode(self, latents: Float[Tensor, "frame channel"], first_frame: int = 0) -> Clip:
        return self.base_model.decode(latents, first_frame)

    def decode_tensor(
        self, latents: Float[Tensor, "frame channel"], first_frame: int = 0
    ) -> Float[Tensor, "2 sample"]:
        model: Any = self.base_model
        return model.decode_tensor(latents, first_frame)

    def place(self, part: Any, device: str | None) -> None:
        self.base_model.place(part, device)
