"""Long songs in overlapping windows: each frame is taken from a window that holds its receptive frames.

The output of a convolutional autoencoder at a frame depends on a few frames on either side, its receptive frames. A
frame at least so far inside a window has the same output as in the whole song; the outputs nearer to an edge are
discarded. A song of any length needs the memory of one window, and the joins cannot be heard.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Window(NamedTuple):
    """Frames `start … stop` are computed, `first … last` of them are used; neighbours share the fade."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """How a song is cut into windows, in latent frames. The defaults are DiffRhythm's, except for the fade."""

    size: int = 128
    """Frames of a window."""
    overlap: int = 32
    """Frames that neighbouring windows share."""
    fade: int = 8
    """Frames in the middle of an overlap over which one window fades into the next, linearly; 0: a hard cut."""

    def __post_init__(self) -> None:
        if not self.overlap >= self.fade >= 0 or self.size <= self.overlap + self.fade:
            raise ValueError(
                f"chunks need overlap >= fade >= 0 and more frames than the two together, "
                f"got overlap={self.overlap}, fade={self.fade}, size={self.size}"
            )
        if self.overlap % 2 or self.fade % 2:
            raise ValueError(
                f"overlap={self.overlap} and fade={self.fade} must be even: half goes either way"
            )

    @property
    def context(self) -> int:
        """Frames on either side of a window that are computed and not used."""
        return (self.overlap - self.fade) // 2

    def windows(self, length: int) -> list[Window]:
        """Windows of equal size, the last one moved back to the end of the song; a short song is one window."""
        if length <= self.size:
            return [Window(0, length, 0, length)]
        starts = [*range(0, length - self.size, self.size - self.overlap), length - self.size]
        joins = [self._join(start, next_start) for start, next_start in pairwise(starts)]
        half = self.fade // 2
        firsts = [0, *(join - half for join in joins)]
        lasts = [*(join + half for join in joins), length]
        return [
            Window(start, start + self.size, first, last)
            for start, first, last in zip(starts, firsts, lasts, strict=True)
        ]

    def _join(self, start: int, next_start: int) -> int:
        """The frame at which the window at `start` gives way to the window at `next_start`.

        The last window may begin right behind its neighbour. Then a fade lies in the old window's half, clear of
        the fade before it, while the published cut takes the new window as early as possible.
        """
        return start + self.size - self.overlap // 2 if self.fade else next_start + self.overlap // 2


CUTS = {
    "cross_fade": Chunks(),
    "published": Chunks(fade=0),
}
"""`published`: the hard cut of the original implementation, window by window."""


def chunks_for_context(frames: int) -> Chunks:
    """Cross-faded chunks whose used frames have at least `frames` frames of context on either side."""
    default = CUTS["cross_fade"]
    overlap = max(default.overlap, 2 * frames + default.fade)
    return Chunks(size=max(default.size, 2 * overlap), overlap=overlap, fade=default.fade)


def stream(
    run: Callable[[int, int], Float[Tensor, "*batch place"]],
    length: int,
    chunks: Chunks,
    *,
    per_frame: int = 1,
) -> Iterator[Float[Tensor, "*batch _"]]:
    """Consecutive pieces of the result of `run(0, length)`, computed by `run(start, stop)` on windows of frames.

    The last axis of `run`'s result has `per_frame` places a frame: samples in decoding, one in encoding. ValueError
    for a result of another length.
    """
    ramp = (torch.arange(chunks.fade * per_frame) + 0.5) / (chunks.fade * per_frame or 1)
    tail: Tensor | None = None
    for start, stop, first, last in chunks.windows(length):
        output = run(start, stop)
        if output.shape[-1] != (stop - start) * per_frame:
            raise ValueError(f"{stop - start} frames gave {output.shape[-1]} places, not {per_frame} a frame")
        body = output[..., (first - start) * per_frame : (last - start) * per_frame]
        if tail is not None:
            head, body = body.tensor_split([tail.shape[-1]], dim=-1)
            yield torch.lerp(tail, head, ramp.to(head))
        if last < length and chunks.fade:
            body, fade_out = body.tensor_split([-chunks.fade * per_frame], dim=-1)
            tail = fade_out.clone()  # a view would keep the whole window
        yield body


def assemble(pieces: Iterator[Float[Tensor, "*batch _"]], total: int) -> Float[Tensor, "*batch {total}"]:
    """Pieces joined along the last axis, on the CPU in fp32, without a second copy of the pieces."""
    result: Tensor | None = None
    place = 0
    for piece in pieces:
        if result is None:
            result = torch.empty(*piece.shape[:-1], total)
        result[..., place : place + piece.shape[-1]] = piece
        place += piece.shape[-1]
    if result is None or place != total:
        raise ValueError(f"the pieces have {place} places together, not {total}")
    return result
