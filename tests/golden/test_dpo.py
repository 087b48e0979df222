"""Objectives and links against numbers of the original implementations."""

import re
from pathlib import Path

import pytest

from diffdpo.errors import DataError
from tools.parity import objectives as golden_losses

FOLDER = Path(__file__).parent / "dpo"
CASES = golden_losses.dpo(FOLDER)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_and_gradients_equal_the_originals(case):
    assert case.is_covered
    assert case.is_within_tolerance, f"error {case.error:.1e}"


@pytest.mark.parametrize("pattern", [*golden_losses.ORIGINALS, "sdpo_lambda_.*", "trl_.*"])
def test_every_family_is_there_with_loss_and_gradient(pattern):
    assert any(re.fullmatch(pattern, path.stem) for path in FOLDER.glob("*.safetensors"))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no"):
        golden_losses.dpo(tmp_path)
