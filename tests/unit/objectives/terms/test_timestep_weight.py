"""The weight of a timestep: its values, and what is refused. What it does to objectives is in test_objectives."""

import pytest
import torch

from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import Outputs

T = torch.tensor([0.01, 0.25, 0.5, 0.8], dtype=torch.float64)


@pytest.mark.parametrize(
    ("weight", "clip", "expected"),
    [
        ("clipped_elbo", 5.0, [5.0, 3.0, 1.0, 0.25]),
        ("clipped_elbo", 2.0, [2.0, 2.0, 1.0, 0.25]),
        ("clipped_elbo", 1e6, [99.0, 3.0, 1.0, 0.25]),
    ],
)
def test_the_weights(weight, clip, expected):
    outputs = Outputs(policy=torch.zeros(4, 2, dtype=torch.float64), t=T)
    assert TimestepWeight(weight, clip)(outputs)[:, 0].tolist() == pytest.approx(expected)


def test_a_constant_weight_needs_no_time():
    assert TimestepWeight()(Outputs(policy=torch.zeros(4, 2))) == 1.0


def test_the_weight_of_the_derivation_warns():
    with pytest.warns(UserWarning, match="reward hacking"):
        theory = TimestepWeight("theory")
    outputs = Outputs(policy=torch.zeros(4, 2, dtype=torch.float64), t=T)
    assert theory(outputs)[:, 0].tolist() == pytest.approx([0.9801, 0.5625, 0.25, 0.04])


def test_a_clip_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"timestep.clip must be a positive number, got 0.0"):
        TimestepWeight("clipped_elbo", 0.0)


def test_a_clip_without_its_weight_is_refused():
    with pytest.raises(ValueError, match=r"timestep.clip is for clipped_elbo only"):
        TimestepWeight(clip=2.0)
