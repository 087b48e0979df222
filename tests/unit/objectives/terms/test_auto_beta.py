"""Automatic beta: the gradient factor it is after, its range, its state."""

import math
from dataclasses import replace

import pytest
import torch
from support.objectives import pair

from diffdpo.objectives.dgpo import DGPO
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.terms.margin import AutoBeta
from diffdpo.types import Outputs

AUTO = AutoBeta(target_factor=0.2, fixed_steps=2, decay=0.0, range=(1.0, 1e6))
LOGIT = math.log(4)  # -logit(0.2)


def follow(objective, outputs, steps=4):
    """Betas of the steps, and the last step's result, when the same outputs come again and again."""
    running, betas = {}, []
    for _ in range(steps):
        result = objective(replace(outputs, state=running))
        betas.append(result.metrics["beta"].mean().item())
        running = objective.update(running, {name: v.mean().item() for name, v in result.metrics.items()})
    return betas, result


def test_an_average_margin_has_the_gradient_factor_it_should():
    betas, result = follow(DPO(beta=500.0, auto_beta=AUTO), pair(0.2, 0.9, 0.3, 0.7))
    assert betas[:2] == [500.0, 500.0]  # fixed at first
    assert betas[2] == pytest.approx(2 * LOGIT / 0.3)  # -2 logit(0.2) / |0.1 + 0.2|
    assert result.metrics["gradient_factor"].item() == pytest.approx(0.2)


def test_so_has_the_margin_of_a_group():
    """Advantages of ±1, errors .1 lower and .2 higher than the reference's: the margin is beta (.1 + .2)/2."""
    outputs = Outputs(
        policy=torch.tensor([[0.2, 0.9]], dtype=torch.float64),
        reference=torch.tensor([[0.3, 0.7]], dtype=torch.float64),
        score=torch.tensor([[1.0, -1.0]], dtype=torch.float64),
    )
    betas, result = follow(DGPO(beta=7.0, auto_beta=AUTO), outputs)
    assert betas[:2] == [7.0, 7.0]
    assert betas[2] == pytest.approx(LOGIT / 0.15)
    assert result.metrics["margin"].item() == pytest.approx(LOGIT)
    assert result.metrics["gradient_factor"].item() == pytest.approx(0.2)


def test_beta_stays_in_its_range_and_survives_a_margin_of_zero():
    auto = AutoBeta(target_factor=0.2, fixed_steps=0, range=(10.0, 5000.0))
    assert auto(2000.0, {"steps": 1, "margin_size": 1e-9}) == 5000.0
    assert auto(2000.0, {"steps": 1, "margin_size": 1e3}) == 10.0
    assert auto(2000.0, {"steps": 1, "margin_size": 0.0}) == 2000.0
    assert auto(2000.0, {}) == 2000.0


def test_the_size_of_margins_is_a_running_mean():
    auto = AutoBeta(target_factor=0.2, decay=0.75)
    first = auto.update({}, {"margin_size": 4.0})
    assert first == {"steps": 1, "margin_size": 4.0}
    assert auto.update(first, {"margin_size": 8.0}) == {"steps": 2, "margin_size": 5.0}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"target_factor": 0.5}, r"auto_beta.target_factor must be in \[0, 0.5\), got 0.5"),
        ({"decay": 1.0}, r"auto_beta.decay must be in \[0, 1\), got 1.0"),
        ({"range": (5.0, 1.0)}, "auto_beta.range must be two positive numbers in order"),
        ({"range": (0.0, 1.0)}, "auto_beta.range must be two positive numbers in order"),
    ],
)
def test_values_outside_of_their_range_are_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        AutoBeta(**fields)
