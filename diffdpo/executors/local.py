"""The executor of one process: batch after batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffdpo.executors.base import WorkerFactory


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Batches in their order, in this process; under `accelerate launch` each process has its own."""

    in_process: ClassVar[bool] = True

    def __call__(
        self, batches: Sequence[Sequence[Any]], factory: WorkerFactory
    ) -> Iterator[tuple[int, list[Any]]]:
        """The number and the results of each batch."""
        if not batches:
            return
        with factory() as worker:
            for number, batch in enumerate(batches):
                yield number, worker(batch)
