"""train.compile on a network that does not say what repeats."""

import pytest
import torch

from diffdpo.errors import ConfigError
from diffdpo.training.setup import compile_repeated_blocks


def test_a_network_without_repeated_blocks_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"train\.compile: Linear names no _repeated_blocks"):
        compile_repeated_blocks(torch.nn.Linear(2, 2))
