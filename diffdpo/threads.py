"""Threads of the numerical libraries, for work whose pieces are too small to be shared out."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch and for numpy's linear algebra inside the `with`, as many as before behind it.

    A second thread helps little where every operation takes a millisecond, and waits for the next one by spinning:
    on a machine with other work, scoring a song costs several times the processor time with it.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(count)


@cache
def _controller() -> ThreadpoolController:
    """Of the libraries that are loaded, scipy's own linear algebra among them."""
    import scipy.linalg  # noqa: F401 - loads it

    return ThreadpoolController()
