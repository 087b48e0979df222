"""Links: what they cost at the start, their arguments, and what is refused."""

import math

import pytest
import torch
from support.objectives import pair, pull

from diffdpo.errors import ConfigError
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.links import LINKS, build_link
from diffdpo.objectives.terms.margin import SoftLabel
from diffdpo.registry import Choice
from diffdpo.types import Outputs

BETA, FLIP = 8.0, 0.1


def reverse_kl(flip):
    """KL(½, ½ ‖ 1 - flip, flip)."""
    return -math.log(2) - 0.5 * math.log(1 - flip) - 0.5 * math.log(flip)


AT_THE_START = {
    "sigmoid": math.log(2),
    "robust": math.log(2),
    "hinge": 1.0,
    "ipo": 1 / BETA**2,  # 1/(4 b²) with b = beta/2
    "bco": 2 * math.log(2),
    "nca": 2 * math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "exo": reverse_kl(FLIP),
    "dmpo": reverse_kl(FLIP),
    "sppo": 2 / BETA**2,
    "discopop": 0.5 * math.log(2) + 0.5,
}
SMOOTHED = ("sigmoid", "robust", "exo", "dmpo")


def choice(link, smoothing=FLIP):
    return Choice(link, {"smoothing": smoothing} if link in SMOOTHED else {})


@pytest.mark.parametrize("link", sorted(LINKS))
def test_the_cost_of_a_policy_that_is_its_reference(link):
    errors = torch.tensor([[0.31, 0.72]], dtype=torch.float32)
    loss = DPO(beta=BETA, link=choice(link))(Outputs(policy=errors, reference=errors)).loss
    assert loss.item() == pytest.approx(AT_THE_START[link], abs=1e-6)


@pytest.mark.parametrize(("link", "share"), [("dmpo", 0.01), ("exo", 1e-3)])
def test_the_reverse_kl_smooths_by_itself(link, share):
    errors = torch.tensor([[0.31, 0.72]], dtype=torch.float64)
    loss = DPO(beta=BETA, link=Choice(link))(Outputs(policy=errors, reference=errors)).loss
    assert loss.item() == pytest.approx(reverse_kl(share))


def test_smoothed_labels_are_a_mixture_of_both_orders():
    outputs, swapped = pair(0.2, 0.9, 0.3, 0.7), pair(0.9, 0.2, 0.7, 0.3)
    mixed = 0.9 * DPO(beta=10.0)(outputs).loss + 0.1 * DPO(beta=10.0)(swapped).loss
    assert torch.allclose(DPO(beta=10.0, link=choice("sigmoid"))(outputs).loss, mixed)


def test_the_robust_link_is_unbiased_under_flipped_labels():
    """Its mean over pairs of which one in ten is flipped is the plain loss of the right order."""
    outputs, swapped = pair(0.2, 0.9, 0.3, 0.7), pair(0.9, 0.2, 0.7, 0.3)
    robust = DPO(beta=10.0, link=choice("robust"))
    assert torch.allclose(
        0.9 * robust(outputs).loss + 0.1 * robust(swapped).loss, DPO(beta=10.0)(outputs).loss
    )


def test_the_reference_point_of_bco_shifts_both_rewards():
    outputs = pair(0.2, 0.9, 0.3, 0.7)  # rewards 5 · 0.1 and 5 · (-0.2)
    loss = DPO(beta=10.0, link=Choice("bco", {"shift": 0.25}))(outputs).loss.item()
    assert loss == pytest.approx(math.log1p(math.exp(-(0.5 - 0.25))) + math.log1p(math.exp(-(0.25 + 1.0))))


ONE_SIDED = "apo_down"
"""It lowers the likelihood of both songs."""


@pytest.mark.parametrize("link", sorted(set(LINKS) - {ONE_SIDED}))
def test_a_label_of_a_half_pulls_nowhere_at_a_margin_of_zero(link):
    half = torch.tensor([0.5], dtype=torch.float64)
    outputs = pair(0.3, 0.7, 0.3, 0.7, soft_label=half)
    assert pull(DPO(beta=8.0, link=Choice(link)), outputs) == pytest.approx([0.0, 0.0], abs=1e-15)


@pytest.mark.parametrize("link", sorted(LINKS))
def test_a_certain_margin_of_a_link_is_its_margin(link):
    """10 (2p - 1) is 1 at p = .55."""
    sure = torch.tensor([0.55], dtype=torch.float64)
    objective = DPO(beta=8.0, link=Choice(link), soft_label=SoftLabel("certainty_margin"))
    plain = objective(pair(0.2, 0.9, 0.3, 0.7)).loss
    assert torch.allclose(objective(pair(0.2, 0.9, 0.3, 0.7, soft_label=sure)).loss, plain)


@pytest.mark.parametrize(
    ("link", "error", "complaint"),
    [
        (Choice("sigmoit"), ConfigError, "unknown link 'sigmoit'. Did you mean 'sigmoid'?"),
        (Choice("hinge", {"smoothing": 0.1}), ConfigError, "link 'hinge' has no 'smoothing'. Known: none."),
        (Choice("robust", {"smoothin": 0.1}), ConfigError, "Did you mean 'smoothing'"),
        (Choice("robust", {"smoothing": "much"}), ValueError, "smoothing of link 'robust' must be a number"),
        (Choice("robust", {"smoothing": 0.5}), ValueError, r"smoothing must be in \[0, 0.5\), got 0.5"),
        (Choice("sigmoid", {"smoothing": -0.1}), ValueError, r"smoothing must be in \[0, 0.5\), got -0.1"),
        (Choice("exo", {"smoothing": 0.0}), ValueError, r"smoothing must be in \(0, 0.5\), got 0.0"),
        (Choice("dmpo", {"smoothing": 0.7}), ValueError, r"smoothing must be in \(0, 0.5\), got 0.7"),
    ],
)
def test_a_link_that_cannot_be_is_refused_with_the_objective(link, error, complaint):
    with pytest.raises(error, match=complaint):
        DPO(link=link)


def test_a_link_is_a_function_of_two_rewards_and_beta():
    rewards = torch.tensor([0.5, -1.0]), torch.tensor([0.25, 1.0])
    assert build_link("hinge")(*rewards, 2.0).tolist() == [0.75, 3.0]
    assert build_link(Choice("hinge"))(*rewards, 2.0).tolist() == [0.75, 3.0]
