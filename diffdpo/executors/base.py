"""What an executor is: batches of work in, the results of each batch out, as they come."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, runtime_checkable

BatchWorker = Callable[[Sequence[Any]], list[Any]]
"""Works off one batch of items: a list of results, of any length. Equal batches have equal results."""
WorkerFactory = Callable[[], AbstractContextManager[BatchWorker]]
"""Makes a worker, which holds models and the like until its context ends. It can be pickled, since workers may live
in other processes; what it holds of this process's memory it leaves behind when it is."""


@runtime_checkable
class Executor(Protocol):
    """A frozen dataclass: its fields are its settings, its call works off batches.

    The same batches have the same results by every executor, bit for bit on one kind of machine.
    """

    in_process: ClassVar[bool]
    """Whether its workers live in this process and share its models."""

    def __call__(
        self, batches: Sequence[Sequence[Any]], factory: WorkerFactory
    ) -> Iterator[tuple[int, list[Any]]]:
        """The number of each batch with its results, in any order, each as soon as it is complete.

        A UserError that a worker raises is raised here; what was yielded before it stays valid.
        """
        ...
