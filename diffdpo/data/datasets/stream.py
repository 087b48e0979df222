"""The training stream: an endless, seeded order of examples that does not depend on how it is split.

Step s of a run consumes positions s*G … (s+1)*G - 1 of the stream, G being the global batch. A process takes its
shard of these positions, in micro-batches. The examples of a step, and the randomness keyed by their positions, are
thus the same for every number of processes and every accumulation, and a resumed run starts at its step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffdpo.errors import ConfigError, UserError
from diffdpo.randomness import generator
from diffdpo.types import Batch


@runtime_checkable
class Examples(Protocol):
    """A set of training examples: songs, pairs, or groups."""

    def __len__(self) -> int: ...

    def example(self, index: int, position: int) -> Any:
        """The example at `index`, with crops and other draws keyed by its position in the stream."""

    def collate(self, examples: Sequence[Any], positions: Sequence[int]) -> Batch: ...


def accumulation(global_batch: int, per_device: int, world: int) -> int:
    """Number of micro-batches of a process in one step. ConfigError if the global batch cannot be divided so."""
    rounds, remainder = divmod(global_batch, per_device * world)
    if remainder or not rounds:
        raise ConfigError(
            f"train.global_batch={global_batch} is not a multiple of train.per_device={per_device} x {world} "
            f"process(es); try per_device={max(1, global_batch // world)}"
        )
    return rounds


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(length, generator=generator(seed, epoch, "order"))


def index_at(position: int, length: int, seed: int) -> int:
    """The index of the example at a position: every epoch is a separate permutation of all examples."""
    return int(_order(length, seed, position // length)[position % length])


def micro_batches(step: int, *, global_batch: int, per_device: int, rank: int, world: int) -> list[list[int]]:
    """The positions of one process in one step, a list for each micro-batch."""
    rounds = accumulation(global_batch, per_device, world)
    starts = (step * global_batch + (r * world + rank) * per_device for r in range(rounds))
    return [list(range(start, start + per_device)) for start in starts]


def batch_to(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device; the songs' lengths stay on the host, where networks read them."""
    names = [name for name, value in vars(batch).items() if isinstance(value, Tensor) and name != "frames"]
    tensors: dict[str, Any] = {name: getattr(batch, name).to(device, non_blocking=True) for name in names}
    return replace(batch, **tensors)


class _Rows(torch.utils.data.Dataset[Any]):
    """The dataset of DataLoader: positions to examples."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def __getitem__(self, position: int) -> tuple[int, Any]:
        """An example, or the error that it raised: a worker process would hide it in a traceback of its own."""
        try:
            index = index_at(position, len(self.examples), self.seed)
            return position, self.examples.example(index, position)
        except (UserError, OSError) as error:
            return position, error


def _collate(collate: Callable[..., Batch], items: Sequence[tuple[int, Any]]) -> Batch | Exception:
    positions, examples = zip(*items, strict=True)
    error = next((example for example in examples if isinstance(example, Exception)), None)
    try:
        return error or collate(examples, positions)
    except (UserError, OSError) as refusal:
        return refusal


def batches(
    examples: Examples, plan: Iterator[list[int]], *, seed: int, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches for a plan of positions, read ahead by `workers` processes.

    A UserError or an error of the system is the same whoever reads.
    """
    loader: DataLoader[Any] = DataLoader(
        _Rows(examples, seed),
        batch_sampler=plan,
        collate_fn=partial(_collate, examples.collate),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=False,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch
