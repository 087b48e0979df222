"""Flow-DPO and its anchored form against numbers of the original implementations."""

from pathlib import Path

import pytest

from diffdpo.errors import DataError
from diffdpo.evaluation import golden_losses

CASES = golden_losses.dpo(Path(__file__).parent / "dpo")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_and_gradients_equal_the_originals(case):
    assert case.covered
    assert case.passed, f"error {case.error:.1e}"


def test_every_original_is_there_with_loss_and_gradient():
    assert len(CASES) == 8


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no"):
        golden_losses.dpo(tmp_path)
