"""The order of training examples does not depend on how the work is split."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.training import batch

from diffdpo.data.datasets.stream import accumulation, batches, index_at, micro_batches
from diffdpo.errors import ConfigError, DataError


@given(st.sampled_from([(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1)]), st.integers(0, 50))
def test_every_layout_covers_the_same_positions(layout, step):
    world, per_device = layout
    plans = [
        micro_batches(step, global_batch=8, per_device=per_device, rank=r, world=world) for r in range(world)
    ]
    flat = sorted(position for plan in plans for batch in plan for position in batch)
    assert flat == list(range(8 * step, 8 * step + 8))


def test_every_epoch_sees_every_row_once_in_another_order():
    epochs = [[index_at(e * 10 + i, 10, seed=1) for i in range(10)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_batches_that_do_not_divide_are_refused_with_a_remedy():
    assert accumulation(8, 2, 2) == 2
    with pytest.raises(ConfigError, match=r"not a multiple.*try per_device=4"):
        accumulation(8, 3, 2)


class Faulty:
    """Examples that raise an error at one position; a plain class, so that worker processes can take it along."""

    def __init__(self, error, where="example"):
        self.error, self.where = error, where

    def __len__(self):
        return 4

    def example(self, index, position):
        if self.where == "example" and position == 3:
            raise self.error
        return position

    def collate(self, examples, positions):
        if self.where == "collate" and 3 in positions:
            raise self.error
        return replace(batch(), positions=tuple(positions))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("where", ["example", "collate"])
@pytest.mark.parametrize(
    "error", [DataError("a.safetensors: damaged; delete it"), PermissionError(13, "denied", "a.safetensors")]
)
def test_an_error_is_the_same_whoever_reads(workers, where, error):
    stream = batches(Faulty(error, where), iter([[0, 1], [2, 3], [4, 5]]), seed=0, workers=workers)
    assert next(stream).positions == (0, 1)
    with pytest.raises(type(error)) as caught:
        next(stream)
    assert (str(caught.value), caught.value.args) == (str(error), error.args)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ours_keeps_its_traceback(workers):
    stream = batches(Faulty(ZeroDivisionError("ours")), iter([[3]]), seed=0, workers=workers)
    with pytest.raises(ZeroDivisionError, match="ours"):
        next(stream)
