"""Threads for work that consists of many short operations: each piece on one core, several pieces side by side.

torch and numpy share every operation among all cores, and a core whose part is done waits for the next operation by
spinning. Where an operation takes a millisecond, as in scoring, the second core helps little, and on a machine with
other work it costs several times the processor time. Such work is shared out by pieces instead.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")

MAX_WORKERS = 4
"""More threads than this only wait for each other: part of the work is Python's own."""


def worker_count() -> int:
    """Threads of `parallel_map`: as many as torch shares an operation among, up to MAX_WORKERS.

    torch takes the number from OMP_NUM_THREADS, which launchers of several processes set to 1, or from the cores.
    """
    import torch

    return min(torch.get_num_threads(), MAX_WORKERS)


def parallel_map(function: Callable[..., T], *iterables: Iterable[object]) -> list[T]:
    """The results of `map`, in its order, each computed on one core; the number of cores changes no result.

    `function` must be safe to call from several threads. The first error is raised, and no further piece begun.
    """
    count = worker_count()
    with single_thread():
        if count == 1:
            return list(map(function, *iterables))
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(function, *iterables))


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for each operation of torch and numpy's linear algebra inside the `with`, the former number after.

    The number belongs to the process: threads that begin inside the `with` have it, too.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _linear_algebra().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(count)


@cache
def _linear_algebra() -> ThreadpoolController:
    """The libraries that are loaded, scipy's own linear algebra among them."""
    import scipy.linalg  # noqa: F401 - loads it

    return ThreadpoolController()
