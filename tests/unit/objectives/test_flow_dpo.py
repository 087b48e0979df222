"""Flow-DPO against closed forms; nothing here needs a network."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.objectives import pair, pull

from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.terms.margin import AutoBeta
from diffdpo.registry import Choice

value = st.floats(0.01, 2.0)


def test_policy_equal_to_reference_costs_log_two_and_pulls_with_a_quarter_beta():
    outputs = pair(0.3, 0.7, 0.3, 0.7)
    assert DPO(beta=8.0)(outputs).loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert pull(DPO(beta=8.0), outputs) == [pytest.approx(8.0 / 4), pytest.approx(-8.0 / 4)]


def test_the_margin_by_hand():
    result = DPO(beta=10.0)(pair(0.2, 0.9, 0.3, 0.7))  # winner better by 0.1, loser worse by 0.2
    assert result.metrics["margin"].item() == pytest.approx(10 / 2 * (0.1 + 0.2))
    assert result.loss.item() == pytest.approx(math.log1p(math.exp(-1.5)))
    assert result.metrics["winner_gain"].item() == pytest.approx(0.1)
    assert result.metrics["loser_gain"].item() == pytest.approx(-0.2)
    assert result.metrics["gradient_factor"].item() == pytest.approx(1 / (1 + math.exp(1.5)))


@given(value, value, value, value)
def test_swapping_winner_and_loser_changes_the_loss_by_exactly_the_margin(a, b, c, d):
    there, back = DPO(beta=10.0)(pair(a, b, c, d)), DPO(beta=10.0)(pair(b, a, d, c))
    assert torch.allclose(there.loss - back.loss, -there.metrics["margin"])  # softplus(-m) - softplus(m) = -m


@given(value, value, value, value, value)
def test_an_equal_change_of_both_reference_errors_changes_nothing(a, b, c, d, shift):
    plain, shifted = DPO(beta=5.0)(pair(a, b, c, d)), DPO(beta=5.0)(pair(a, b, c + shift, d + shift))
    assert torch.allclose(plain.loss, shifted.loss, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(ValueError, match="beta must be a positive number"):
        DPO(beta=beta)


def test_a_link_may_be_given_by_its_bare_name():
    """In a process of its own, where annotations are not checked."""
    code = """if True:
        from diffdpo.objectives.dpo import DPO
        from diffdpo.registry import Choice
        assert DPO(link="ipo") == DPO(link=Choice("ipo")) != DPO()
        try:
            DPO(link="ippo")
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigError unknown link 'ippo'. Did you mean 'ipo'? Known: apo_down, ")


def test_links_scale_with_the_beta_of_the_step():
    """IPO pulls the margin to ½ at any beta: with an automatic one, at that."""
    auto_beta = AutoBeta(target_factor=0.2, fixed_steps=0, range=(1.0, 1e6))
    objective = DPO(beta=500.0, link=Choice("ipo"), auto_beta=auto_beta)
    running = {"steps": 5, "margin_size": 0.3}
    beta = auto_beta(500.0, running)
    there = replace(pair(0.5, 0.5, 0.5 + 1 / beta, 0.5), state=running)  # margin beta/2 · 1/beta = ½
    assert objective(there).metrics["margin"].item() == pytest.approx(0.5)
    assert objective(there).loss.item() == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", 2000 / (2 * 2048 * 64)), ("per_frame", 2000 / 128), ("sum", 1000)]
)
def test_the_kl_coefficient_that_beta_stands_for(reduction, expected):
    frames = torch.tensor([2048.0], dtype=torch.float64)  # 95 s of DiffRhythm's latents: .0076 with means
    coefficient = DPO(beta=2000.0, reduction=reduction).kl_coefficient({}, frames, 64)
    assert coefficient.item() == pytest.approx(expected)
