"""Safeguard and anchors against closed forms, in DPO and in Linear-DPO."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.objectives import pair, pull, random_outputs

from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.linear_dpo import LinearDPO
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.types import LossOutput, Outputs, Velocities

FACTORS = {DPO: 4.0 / 2 * 0.5, LinearDPO: 0.5}
"""Slope of the loss by the winner's error at a margin of zero, beta 4."""


@pytest.mark.parametrize("objective", FACTORS)
def test_the_safeguard_keeps_the_winner_from_getting_worse(objective):
    """A gradient step on the predictions themselves, where the guarantee is exact to first order."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 2, 8, 4, generator=generator, dtype=torch.float64)
    off = torch.randn(1, 1, 8, 4, generator=generator, dtype=torch.float64)
    start = target + off * torch.tensor([0.1, 0.5])[None, :, None, None]  # the loser is far off, the same way

    def winner_change(safeguard):
        prediction = start.clone().requires_grad_()
        errors = ((prediction - target) ** 2).mean((2, 3))
        outputs = Outputs(
            policy=errors,
            reference=errors.detach(),
            mask=torch.ones(1, 2, 8, dtype=torch.bool),
            velocities=Velocities(policy=prediction, target=target, reference=start),
        )
        objective(beta=4.0, safeguard=safeguard)(outputs).loss.sum().backward()
        step = prediction.grad[:, 0] + prediction.grad[:, 1]  # what shared weights would feel
        winner = 2 * (start - target)[:, 0]
        return -(step * winner).sum().item(), winner.square().sum().item()

    assert winner_change(None)[0] > 0  # unguarded, the winner's error rises
    for mu in (0.25, 0.8):
        change, most = winner_change(Safeguard(mu))
        assert change == pytest.approx(-mu * FACTORS[objective] / (8 * 4) * most)  # a mean over elements


@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_scale_is_between_nothing_and_all(seed, mu):
    winner, loser = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = Safeguard(mu).scale(winner, loser)
    assert 0 <= scale <= 1
    change = -(winner @ winner - scale * (winner @ loser))
    assert change <= -mu * winner @ winner + 1e-9


@pytest.mark.parametrize("t", [0.1, 0.3, 0.6])
def test_on_gaussian_songs_the_scale_is_what_the_share_of_signal_allows(t):
    """Errors of the exact velocity on data of variance s correlate, at shared noise, by rho = a² s / (a² s + t²),
    a = 1 - t: lambda = min(1, (1 - mu) / rho). So it is the end of the flow, near the song, that is held back."""
    generator, s, mu = torch.Generator().manual_seed(0), 0.25, 0.5
    song = s**0.5 * torch.randn(1, 2, 20000, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, 1, 20000, 2, generator=generator, dtype=torch.float64)
    variance = (1 - t) ** 2 * s + t**2
    exact = ((t - (1 - t) * s) / variance) * ((1 - t) * song + t * noise)
    velocities = Velocities(policy=exact, target=noise - song, reference=exact)
    errors = ((exact - velocities.target) ** 2).mean((2, 3))
    _, metrics = Safeguard(mu)(Outputs(policy=errors, reference=errors, velocities=velocities))
    expected = min(1.0, (1 - mu) * variance / ((1 - t) ** 2 * s))
    assert metrics["loser_scale"].item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("objective", FACTORS)
def test_with_mu_of_one_a_loser_that_agrees_is_not_pushed_and_one_that_does_not_is_let_go(objective):
    winner = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for loser, share in ((2 * winner, 0.0), (-winner, 1.0), (torch.tensor([2.0, -1.0]).double(), 1.0)):
        policy = torch.stack([winner, loser])[None, :, None]
        velocities = Velocities(policy=policy, target=0 * policy, reference=policy)
        outputs = replace(pair(0.3, 0.3, 0.3, 0.3), velocities=velocities)
        plain, guarded = (pull(objective(beta=4.0, safeguard=g), outputs) for g in (None, Safeguard(1.0)))
        assert guarded == [plain[0], pytest.approx(share * plain[1])]


def test_the_safeguard_changes_gradients_and_no_values():
    outputs = random_outputs(DPO())
    for objective in (DPO(beta=20.0), LinearDPO()):
        guarded = replace(objective, safeguard=Safeguard(0.9))
        assert torch.equal(objective(outputs).loss, guarded(outputs).loss)
        assert guarded.needs == objective.needs | {"velocities"}


@pytest.mark.parametrize("mu", [-0.1, 1.1])
def test_a_mu_outside_of_its_range_is_refused(mu):
    with pytest.raises(ValueError, match=r"safeguard.mu must be in \[0, 1\]"):
        Safeguard(mu)


@pytest.mark.parametrize("objective", FACTORS)
def test_an_anchor_adds_the_winners_error_and_its_gradient(objective):
    plain, anchored = objective(beta=10.0), objective(beta=10.0, anchor=Anchor(winner=0.5))
    outputs = pair(0.2, 0.9, 0.3, 0.7)
    assert anchored(outputs).loss.item() == pytest.approx(plain(outputs).loss.item() + 0.5 * 0.2)
    difference = [a - b for a, b in zip(pull(anchored, outputs), pull(plain, outputs), strict=True)]
    assert difference == [pytest.approx(0.5), pytest.approx(0.0)]


@pytest.mark.parametrize("objective", FACTORS)
@pytest.mark.parametrize(("beta", "t", "weight"), [(8.0, 0.5, 1.0), (2000.0, 0.25, 3.0), (50.0, 0.01, 5.0)])
def test_a_reward_anchor_keeps_its_share_of_the_pull_at_every_beta_and_t(objective, beta, t, weight):
    """At policy = reference the loser is pushed with weight ½ in the margin's units, the winner with ½ + share."""
    unit = {DPO: beta / 2, LinearDPO: 1.0}[objective] * weight
    outputs = pair(0.3, 0.7, 0.3, 0.7, t=torch.tensor([t], dtype=torch.float64))
    anchored = objective(beta=beta, timestep=TimestepWeight("clipped_elbo"), anchor=Anchor(reward=0.3))
    assert pull(anchored, outputs) == pytest.approx([unit * 0.8, -unit * 0.5])


def test_the_rewards_of_anchors_by_hand():
    """The winner's reward is 10/2 · 0.1 where it is better than the reference, -10/2 · 0.1 where it is worse."""
    better, worse = pair(0.2, 0.9, 0.3, 0.7), pair(0.4, 0.9, 0.3, 0.7)
    plain, reward, hinge = (
        DPO(beta=10.0, anchor=a) for a in (Anchor(), Anchor(reward=0.3), Anchor(hinge=0.3))
    )
    for outputs, h in ((better, 0.5), (worse, -0.5)):
        loss = plain(outputs).loss.item()
        assert reward(outputs).loss.item() == pytest.approx(loss - 0.3 * h)
        assert hinge(outputs).loss.item() == pytest.approx(loss + 0.3 * max(0, -h))


def test_the_anchor_of_velocities_is_their_mean_squared_distance_over_frames_that_exist():
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    reference = torch.zeros(1, 2, 3, 2, dtype=torch.float64)
    policy = reference + torch.tensor([[[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]])[..., None]
    velocities = Velocities(policy=policy, target=reference, reference=reference)
    outputs = replace(pair(0.2, 0.9, 0.3, 0.7), mask=mask, velocities=velocities)
    plain = LossOutput(loss=torch.zeros(1))
    anchored = Anchor(velocity=0.5)(plain, outputs, torch.zeros(1))
    assert anchored.loss.item() == pytest.approx(0.5 * ((1 + 4) / 2 + 9) / 2)
    assert anchored.metrics["velocity_distance"].item() == pytest.approx(5.75)
    assert Anchor()(plain, outputs, torch.zeros(1)).metrics == {}
    assert (Anchor().needs, Anchor(velocity=0.5).needs) == (frozenset(), {"velocities"})


def test_anchors_of_negative_weight_are_refused():
    with pytest.raises(ValueError, match=r"anchor\.\w+ must be at least 0"):
        Anchor(hinge=-0.1)
