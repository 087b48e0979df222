"""Objectives against closed forms; nothing here needs a network."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffdpo.losses import OBJECTIVES
from diffdpo.losses.anchored_dpo import AnchoredDPO
from diffdpo.losses.dpo import DPO
from diffdpo.losses.flow_matching import FlowMatching
from diffdpo.types import Outputs

value = st.floats(0.01, 2.0)


def pair(policy_w, policy_l, reference_w, reference_l, **others):
    policy = torch.tensor([[policy_w, policy_l]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[reference_w, reference_l]], dtype=torch.float64)
    return Outputs(policy=policy, reference=reference, **others)


def test_policy_equal_to_reference_costs_log_two_and_pulls_with_a_quarter_beta():
    outputs = pair(0.3, 0.7, 0.3, 0.7)
    loss = DPO(beta=8.0)(outputs).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert outputs.policy.grad.tolist() == [[pytest.approx(8.0 / 4), pytest.approx(-8.0 / 4)]]


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
    one, two = DPO(beta=5.0)(pair(a, b, c, d)), DPO(beta=5.0)(pair(a, b, c + shift, d + shift))
    assert torch.allclose(one.loss, two.loss, rtol=1e-10)


def test_label_smoothing_is_a_mixture_of_both_orders():
    outputs = pair(0.2, 0.9, 0.3, 0.7)
    swapped = pair(0.9, 0.2, 0.7, 0.3)
    mixed = 0.9 * DPO(beta=10.0)(outputs).loss + 0.1 * DPO(beta=10.0)(swapped).loss
    assert torch.allclose(DPO(beta=10.0, label_smoothing=0.1)(outputs).loss, mixed)


def test_a_soft_label_of_one_is_a_hard_one_and_of_a_half_pulls_nowhere():
    outputs = pair(0.3, 0.7, 0.3, 0.7, soft_label=torch.tensor([0.5], dtype=torch.float64))
    DPO(beta=8.0)(outputs).loss.sum().backward()
    assert outputs.policy.grad.abs().max() == 0
    sure = replace(outputs, soft_label=torch.tensor([1.0], dtype=torch.float64))
    assert torch.equal(DPO()(sure).loss, DPO()(replace(sure, soft_label=None)).loss)


def test_the_anchor_adds_the_winners_error_and_its_gradient():
    plain, anchored = pair(0.2, 0.9, 0.3, 0.7), pair(0.2, 0.9, 0.3, 0.7)
    loss = DPO(beta=10.0)(plain).loss
    loss.sum().backward()
    with_anchor = AnchoredDPO(beta=10.0, anchor=0.5)(anchored).loss
    with_anchor.sum().backward()
    assert with_anchor.item() == pytest.approx(loss.item() + 0.5 * 0.2)
    difference = anchored.policy.grad - plain.policy.grad
    assert difference.tolist() == [[pytest.approx(0.5), pytest.approx(0.0)]]


def test_flow_matching_is_the_songs_error():
    outputs = Outputs(policy=torch.tensor([[0.25], [0.5]]))
    assert FlowMatching()(outputs).loss.tolist() == [0.25, 0.5]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_losses_are_per_example_and_do_not_see_their_neighbours(name):
    objective = OBJECTIVES[name]()
    members = {"song": 1, "pair": 2}[objective.batch_kind]
    policy, reference = (
        torch.rand(6, members, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1)
    )
    whole = objective(Outputs(policy=policy, reference=reference)).loss
    alone = [
        objective(Outputs(policy=policy[i : i + 1], reference=reference[i : i + 1])).loss for i in range(6)
    ]
    assert whole.shape == (6,)
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_metrics_carry_no_gradient(name):
    objective = OBJECTIVES[name]()
    members = {"song": 1, "pair": 2}[objective.batch_kind]
    policy = torch.rand(3, members, requires_grad=True)
    metrics = objective(Outputs(policy=policy, reference=torch.rand(3, members))).metrics
    assert not any(metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize("bad", [{"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}])
def test_wrong_hyper_parameters_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        DPO(**bad)
    with pytest.raises(ValueError, match="must be"):
        AnchoredDPO(**bad)
    with pytest.raises(ValueError, match="anchor"):
        AnchoredDPO(anchor=-1.0)
