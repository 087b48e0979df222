"""Context parallelism: the frames of each song divided over a group of processes (docs/howto/context-parallel.md).

Inside `divided_frames(shards)` process r of n computes the r-th of n equal parts of every song's frames. A
network takes and gives whole songs: it cuts out its own part (`own_frames`), joins the parts of the answer
(`join_frames`), and calls the functions between the two wherever a layer mixes frames. Outside, each function is
the identity, and nothing is computed.

All communication is one differentiable exchange, whose gradient is the exchange in the other direction. So a
process's gradient is that of the sum of all processes' losses by its own copy of a parameter. These losses being
equal, the mean of the gradients over all processes, which DistributedDataParallel takes anyway, is the gradient
of the loss. References: Jacobs et al. 2023 (DeepSpeed-Ulysses, arXiv:2309.14509) for attention.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class FrameShards:
    """The processes that share a song."""

    group: Any
    """A process group of torch.distributed."""
    rank: int
    """This process's place in the group: the part of the frames that it computes."""
    size: int


_shards: list[FrameShards] = []
"""Of the whole process, not of a thread: checkpointed blocks run again in autograd's threads."""


@contextmanager
def divided_frames(shards: FrameShards | None) -> Iterator[None]:
    """Songs are divided over the processes of `shards` inside the `with`; None: each process computes whole songs.

    All processes of the group compute the same songs there, and the backward passes belong inside too.
    """
    if shards is None:
        yield
        return
    _shards.append(shards)
    try:
        yield
    finally:
        _shards.pop()


def current_shards() -> FrameShards | None:
    """The processes over which songs are divided now."""
    return _shards[-1] if _shards else None


def padded_length(length: int) -> int:
    """The length of a batch with its last frames padded, so that all processes have parts of the same length."""
    shards = current_shards()
    return length if shards is None else -(-length // shards.size) * shards.size


def own_frames(values: Shaped[Tensor, "batch frame *_"]) -> Shaped[Tensor, "batch part *_"]:
    """This process's part of the frames, with zeros (False) behind the end of the batch."""
    shards = current_shards()
    if shards is None:
        return values
    missing = padded_length(values.shape[1]) - values.shape[1]
    if missing:
        values = torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], 1)
    return values.chunk(shards.size, dim=1)[shards.rank]


def join_frames(
    values: Float[Tensor, "batch part channel"], length: int
) -> Float[Tensor, "batch {length} channel"]:
    """All processes' parts of songs of `length` frames, the same on all of them."""
    shards = current_shards()
    if shards is None:
        return values
    return torch.cat(list(_replicate(values, shards)), dim=1)[:, :length]


def frame_positions(count: int, device: torch.device) -> Int[Tensor, " {count}"]:
    """The positions in the song of this process's `count` frames."""
    shards = current_shards()
    first = 0 if shards is None else shards.rank * count
    return torch.arange(first, first + count, device=device)


def share_heads(values: Float[Tensor, "batch head part dim"]) -> Float[Tensor, "batch share frame dim"]:
    """All frames of this process's share of the heads, from this process's frames of all heads.

    Heads that do not divide are padded with heads of zeros, which attend to nothing.
    """
    shards = current_shards()
    if shards is None:
        return values
    padded = F.pad(values, (0, 0, 0, 0, 0, -values.shape[1] % shards.size))
    parts = _exchange(torch.stack(padded.chunk(shards.size, dim=1)), shards)
    return torch.cat(list(parts), dim=2)


def share_frames(
    values: Float[Tensor, "batch share frame dim"], heads: int
) -> Float[Tensor, "batch {heads} part dim"]:
    """The way back: this process's frames of all `heads`, from all frames of its share of the heads."""
    shards = current_shards()
    if shards is None:
        return values
    parts = _exchange(torch.stack(values.chunk(shards.size, dim=2)), shards)
    return torch.cat(list(parts), dim=1)[:, :heads]


def widen_frames(values: Shaped[Tensor, "..."], width: int, dim: int) -> Shaped[Tensor, "..."]:
    """This process's frames with their `width` neighbours on either side; zeros beyond the borders of the batch.

    For layers with a view of so many frames, which `trim_frames` is to follow.
    """
    shards = current_shards()
    if shards is None:
        return values
    own = values.movedim(dim, 0)
    count = len(own)
    # A process d places away needs what of these frames is within `width` of its own.
    distances = [abs(rank - shards.rank) for rank in range(shards.size)]
    sizes = [min(count, max(0, width - (d - 1) * count)) if d else 0 for d in distances]
    edges = [own[count - n :] if rank > shards.rank else own[:n] for rank, n in enumerate(sizes)]
    received = _exchange(torch.cat(edges), shards, sizes)
    before, after = received.split([sum(sizes[: shards.rank]), sum(sizes[shards.rank :])])
    zeros = own.new_zeros(width, *own.shape[1:])
    parts = zeros[len(before) :], before, own, after, zeros[len(after) :]
    return torch.cat([part.movedim(0, dim) for part in parts], dim)


def trim_frames(values: Shaped[Tensor, "..."], width: int, dim: int) -> Shaped[Tensor, "..."]:
    """The frames without `width` neighbours on either side."""
    if current_shards() is None:
        return values
    return values.narrow(dim, width, values.shape[dim] - 2 * width)


def song_norm(values: Float[Tensor, "batch part dim"]) -> Float[Tensor, "batch 1 dim"]:
    """The Euclidean norm of each channel over all frames of the song."""
    norm, shards = values.norm(p=2, dim=1, keepdim=True), current_shards()
    return norm if shards is None else _replicate(norm, shards).norm(p=2, dim=0)


def _replicate(values: Shaped[Tensor, "*shape"], shards: FrameShards) -> Shaped[Tensor, "process *shape"]:
    """The values of every process, on all of them; backward, each gets the sum of the slopes of all."""
    return _exchange(values.expand(shards.size, *values.shape), shards)


def _exchange(values: Tensor, shards: FrameShards, sizes: Sequence[int] | None = None) -> Tensor:
    """Row r to process r, and the rows of all processes for this one; `sizes`: so many rows to and from each."""
    return _Exchange.apply(values, shards.group, list(sizes) if sizes else [1] * shards.size)


class _Exchange(torch.autograd.Function):
    """All-to-all along the first axis, with as many rows to a process as from it: its own transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any, sizes: list[int]) -> Tensor:
        ctx.group, ctx.sizes = group, sizes
        return _all_to_all(values, group, sizes)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(slopes[0], ctx.group, ctx.sizes), None, None


def _all_to_all(values: Tensor, group: Any, sizes: list[int]) -> Tensor:
    received = torch.empty_like(values, memory_format=torch.contiguous_format)
    torch.distributed.all_to_all_single(received, values.contiguous(), sizes, sizes, group=group)
    return received
