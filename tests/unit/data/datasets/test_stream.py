"""The order of training examples does not depend on how the work is split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffdpo.data.datasets.stream import accumulation, index_at, micro_batches
from diffdpo.errors import ConfigError


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
