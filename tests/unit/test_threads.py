"""Threads: pieces side by side, each on one core, and the former number of threads afterwards."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from diffdpo.threads import MAX_WORKERS, parallel_map, single_thread, worker_count


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def linear_algebra() -> set[int]:
    """Threads of the libraries that numpy and scipy multiply matrices with."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_every_piece_has_one_thread_wherever_it_runs(threads):
    before = linear_algebra()
    counts = parallel_map(lambda _: (torch.get_num_threads(), linear_algebra()), range(8))
    assert counts == [(1, {1})] * 8
    assert (torch.get_num_threads(), linear_algebra()) == (threads, before)


def test_results_come_in_order_and_inner_maps_share_nothing_out(threads):
    assert worker_count() == threads
    inner = parallel_map(lambda x, y: (x + y, worker_count()), range(20), range(0, 200, 10))
    assert inner == [(11 * x, 1) for x in range(20)]
    assert parallel_map(np.sqrt, []) == []


def test_an_error_is_raised_and_the_number_of_threads_restored(threads):
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda x: 1 / x, [1, 0, 2])
    with pytest.raises(KeyError), single_thread():
        raise KeyError("inside")
    assert torch.get_num_threads() == threads


def test_many_cores_are_not_all_taken():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(MAX_WORKERS + 5)
        assert worker_count() == MAX_WORKERS
    finally:
        torch.set_num_threads(before)
