"""Means over a step: weighted by examples, over stretches of time, over axes."""

import pytest
import torch

from diffdpo.training.config import TrainConfig
from diffdpo.training.metrics import StepRecord, step_means
from diffdpo.training.strategy import build_accelerator
from diffdpo.types import LossOutput


@pytest.fixture
def accelerator(tmp_path):
    return build_accelerator(TrainConfig(trackers=[]), str(tmp_path))


def record(loss, t, axes=()):
    loss = torch.tensor(loss)
    metrics = {"accuracy": (loss > 1).float(), "margin": 10 * loss, "weight": loss}
    return StepRecord(result=LossOutput(loss=loss, metrics=metrics), t=torch.tensor(t), axes=axes)


PARTS = [record([1.0, 2.0], [0.0, 0.24], ("a", "b")), record([3.0, 6.0], [0.25, 1.0], ("a", ""))]


def test_means_are_over_examples_and_bins_hold_their_own(accelerator):
    means = step_means(accelerator, PARTS, bins=4, axes=())
    assert means["loss"] == 3.0
    assert means["margin"] == 30.0
    assert means["margin/t0.00-0.25"] == 15.0
    assert means["margin/t0.25-0.50"] == 30.0
    assert means["margin/t0.75-1.00"] == 60.0
    assert "margin/t0.50-0.75" not in means
    assert not any(key.startswith(("weight/", "loss/")) for key in means)


def test_each_axis_has_the_accuracy_of_its_own_pairs(accelerator):
    means = step_means(accelerator, PARTS, bins=0, axes=("a", "b", "c"))
    assert means["accuracy/a"] == 0.5
    assert means["accuracy/b"] == 1.0
    assert "accuracy/c" not in means


def test_a_bin_is_the_mean_of_its_examples_however_they_are_split(accelerator):
    whole = [record([1.0, 2.0, 3.0, 6.0], [0.0, 0.24, 0.25, 1.0], ("a", "b", "a", ""))]
    one, two = (step_means(accelerator, parts, bins=3, axes=("a",)) for parts in (PARTS, whole))
    assert one == two
