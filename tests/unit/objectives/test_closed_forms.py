"""Objectives beside DPO against closed forms: Linear-DPO, DSPO, MaPO, KTO, NFT."""

import math
from dataclasses import replace

import pytest
import torch
from support.objectives import pair, pull, random_outputs

from diffdpo.objectives.dspo import DSPO
from diffdpo.objectives.kto import KTO
from diffdpo.objectives.linear_dpo import LinearDPO
from diffdpo.objectives.mapo import MaPO
from diffdpo.objectives.nft import NFT
from diffdpo.objectives.terms.margin import SoftLabel
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import Outputs, Velocities


def logistic(x):
    return 1 / (1 + math.exp(-x))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("p", "factor"), [(1.0, 0.44), (0.7, 0.7 - 0.56), (0.5, 0.5 - 0.56), (0.0, -0.56)])
def test_linear_dpo_pulls_with_the_label_less_its_own_estimate(p, factor):
    """omega = ½ - 0.2 beta (0.1 + 0.2) = .44 at beta 1, so it holds the winner the better with .56: p - .56."""
    outputs = pair(0.2, 0.9, 0.3, 0.7, soft_label=double(p))
    assert pull(LinearDPO(beta=1.0), outputs) == pytest.approx([factor, -factor])
    assert LinearDPO(beta=1.0)(outputs).loss.item() == pytest.approx(factor * (0.2 - 0.9))


def test_linear_dpo_keeps_a_floor_whatever_the_margin():
    behind, ahead = pair(0.9, 0.2, 0.3, 0.7), pair(0.2, 0.9, 0.3, 0.7)
    assert pull(LinearDPO(beta=1e4), behind) == pytest.approx([0.99, -0.99])
    assert pull(LinearDPO(beta=1e4), ahead) == pytest.approx([0.01, -0.01])


def test_linear_dpo_weighs_its_own_estimate_too():
    """At t = ¼ all errors count three times: omega = ½ - 0.2 · 3 · 0.3, and the pull is three times that."""
    outputs = pair(0.2, 0.9, 0.3, 0.7, t=double(0.25))
    objective = LinearDPO(beta=1.0, timestep=TimestepWeight("clipped_elbo"))
    assert pull(objective, outputs) == pytest.approx([3 * 0.32, -3 * 0.32])
    assert objective(outputs).metrics["margin"].item() == pytest.approx(3 * 0.15)


def test_a_certain_label_multiplies_the_rewards_of_linear_dpo():
    """10 (2p - 1) = 2 at p = .6: omega = ½ - 0.2 · 2 · 0.3, and the pull is twice that."""
    outputs = pair(0.2, 0.9, 0.3, 0.7, soft_label=double(0.6))
    objective = LinearDPO(beta=1.0, soft_label=SoftLabel("certainty_margin"))
    assert pull(objective, outputs) == pytest.approx([2 * 0.38, -2 * 0.38])


def test_dspo_tilts_the_target_of_the_better_song():
    """One frame, one channel, policy off by 2 and from the reference by 1 (winner), by 3 and 1 (loser)."""
    policy = double(2.0, 3.0).view(1, 2, 1, 1)
    velocities = Velocities(policy=policy, target=0 * policy, reference=policy - 1)
    outputs = pair(4.0, 9.0, 1.0, 4.0, velocities=velocities, soft_label=double(0.25))  # rewards -3 and -5
    z = 0.5 / 2 * (-3 + 5)
    ahead, behind = ((off - 0.5 * (1 - logistic(margin))) ** 2 for off, margin in ((2.0, z), (3.0, -z)))
    assert DSPO(beta=0.5)(outputs).loss.item() == pytest.approx(0.25 * ahead + 0.75 * behind)
    assert DSPO(beta=0.5)(replace(outputs, soft_label=None)).loss.item() == pytest.approx(ahead)


def test_mapo_of_equal_errors_costs_the_error_and_beta_log_two():
    outputs = pair(0.3, 0.3, 0.0, 0.0, soft_label=double(0.8))
    for objective in (MaPO(), MaPO(soft_label=SoftLabel("ignore"))):
        assert objective(outputs).loss.item() == pytest.approx(0.3 + 0.1 * math.log(2))


@pytest.mark.parametrize("objective", [DSPO, MaPO])
def test_a_certainty_without_rewards_is_refused(objective):
    with pytest.raises(ValueError, match=f"soft_label.kind of {objective.__name__.lower()} must be mixture"):
        objective(soft_label=SoftLabel("certainty_margin"))


def test_kto_knows_the_mean_gain_of_the_step_before():
    objective = KTO(beta=10.0)
    reference = torch.full((2, 1), 0.5, dtype=torch.float64)
    outputs = Outputs(policy=double(0.2, 0.4)[:, None], reference=reference, score=double(1.0, -1.0)[:, None])
    first = objective(outputs)
    assert first.loss.tolist() == pytest.approx([logistic(-3), logistic(1)])
    running = objective.update({}, {"gain": first.metrics["gain"].mean().item()})
    assert running == {"reference_point": pytest.approx(0.2)}
    second = objective(replace(outputs, state=running))
    assert second.loss.tolist() == pytest.approx([logistic(-1), logistic(-1)])
    assert objective.update({}, {"gain": -1.0}) == {"reference_point": 0.0}


def test_the_reference_point_of_kto_is_a_mean_of_weighted_gains():
    objective = KTO(beta=10.0, timestep=TimestepWeight("clipped_elbo"))
    reference = torch.full((2, 1), 0.5, dtype=torch.float64)
    outputs = Outputs(
        policy=double(0.2, 0.4)[:, None],
        reference=reference,
        score=double(1.0, -1.0)[:, None],
        t=double(0.25, 0.5),
    )
    result = objective(outputs)
    assert result.metrics["gain"].tolist() == pytest.approx([3 * 0.3, 0.1])
    assert result.loss.tolist() == pytest.approx([logistic(-9), logistic(1)])


def test_nft_of_an_average_song_pulls_nowhere_when_policy_and_old_agree():
    objective = NFT(kl=0.0)
    outputs = replace(random_outputs(objective), score=torch.zeros(6, 4, dtype=torch.float64))
    velocities = replace(outputs.velocities, old=outputs.velocities.policy.detach())
    outputs = replace(outputs, velocities=velocities)
    gradient = torch.autograd.grad(objective(outputs).loss.sum(), outputs.velocities.policy)[0]
    assert gradient.abs().max() < 1e-15
