"""Objectives against closed forms; nothing here needs a network."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffdpo.flow import masked_error
from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.kto import KTO
from diffdpo.objectives.nft import NFT
from diffdpo.objectives.terms.link import LINKS
from diffdpo.objectives.terms.safeguard import loser_scale, pair_scale
from diffdpo.types import Outputs, Velocities

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
    with_anchor = DPO(beta=10.0, anchor=0.5)(anchored).loss
    with_anchor.sum().backward()
    assert with_anchor.item() == pytest.approx(loss.item() + 0.5 * 0.2)
    difference = anchored.policy.grad - plain.policy.grad
    assert difference.tolist() == [[pytest.approx(0.5), pytest.approx(0.0)]]


def test_the_reward_anchor_keeps_its_share_of_the_pull_at_every_beta_and_t():
    """At policy = reference the winner is pulled with weight beta/2 (1/2 + share), the loser with weight beta/4."""
    by_hand = DPO(beta=10.0)(pair(0.2, 0.9, 0.3, 0.7)).loss.item() - 0.3 * 10 / 2 * 0.1
    assert DPO(beta=10.0, reward_anchor=0.3)(pair(0.2, 0.9, 0.3, 0.7)).loss.item() == pytest.approx(by_hand)
    for beta, t, weight in ((8.0, 0.5, 1.0), (2000.0, 0.25, 3.0), (50.0, 0.01, 5.0)):
        outputs = pair(0.3, 0.7, 0.3, 0.7, t=torch.tensor([t], dtype=torch.float64))
        objective = DPO(beta=beta, timestep_weight="clipped_elbo", reward_anchor=0.3)
        objective(outputs).loss.sum().backward()
        expected = [weight * beta / 2 * 0.8, -weight * beta / 4]
        assert outputs.policy.grad[0].tolist() == pytest.approx(expected)


def test_flow_matching_is_the_songs_error():
    outputs = Outputs(policy=torch.tensor([[0.25], [0.5]]))
    assert FlowMatching()(outputs).loss.tolist() == [0.25, 0.5]


MEMBERS = {"song": 1, "pair": 2, "rated": 1, "group": 4}


def seen(objective, examples=6, seed=0):
    """Velocities of random songs of unequal length, and all that follows from them."""
    members = MEMBERS[objective.batch_kind]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(examples, members, *shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(7) < torch.randint(4, 8, (examples, members, 1), generator=generator)
    target = draw(7, 3)
    predicted = {name: target + 0.3 * draw(7, 3) for name in ("policy", "reference", "old")}
    predicted["policy"].requires_grad_()
    stacked = {name: (v - target).flatten(0, 1) for name, v in predicted.items()}
    errors = {
        name: masked_error(v, torch.zeros_like(v), mask.flatten(0, 1)).unflatten(0, (examples, members))
        for name, v in stacked.items()
    }
    return Outputs(
        **errors,
        t=torch.rand(examples, generator=generator, dtype=torch.float64),
        mask=mask,
        score=draw(),
        velocities=Velocities(target=target, **predicted),
    )


def rows(outputs, keep):
    """Some of the examples."""

    def take(value):
        return value[keep] if isinstance(value, torch.Tensor) else value

    velocities = Velocities(**{name: take(v) for name, v in vars(outputs.velocities).items()})
    fields = {name: take(v) for name, v in vars(outputs).items()}
    return Outputs(**{**fields, "velocities": velocities})


EXCEPTIONS = {"dspo", "dpo apo_down", "dpo discopop"}
"""DSPO looks at velocities, APO-down lowers both likelihoods, DiscoPOP is not monotone at zero."""
VARIANTS = {
    **{name: OBJECTIVES[name]() for name in OBJECTIVES},
    "dpo with all": DPO(
        anchor=0.3, winner_hinge=0.2, velocity_anchor=0.1, safeguard=0.5, reduction="sum", beta=0.5
    ),
    "dpo clipped": DPO(timestep_weight="clipped_elbo", reduction="per_frame", beta=5.0, reward_anchor=0.1),
    **{f"dpo {link}": DPO(link=link, beta=10.0) for link in LINKS},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_per_example_and_do_not_see_their_neighbours(name):
    objective = VARIANTS[name]
    outputs = seen(objective)
    whole = objective(outputs).loss
    alone = [objective(rows(outputs, slice(i, i + 1))).loss for i in range(6)]
    assert whole.shape == (6,)
    assert torch.allclose(whole, torch.cat(alone), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_metrics_carry_no_gradient_and_the_loss_does(name):
    objective = VARIANTS[name]
    outputs = seen(objective)
    result = objective(outputs)
    assert not any(metric.requires_grad for metric in result.metrics.values())
    assert all(metric.shape == (6,) for metric in result.metrics.values())
    gradient = torch.autograd.grad(result.loss.sum(), outputs.velocities.policy)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_what_stands_in_the_padding_cannot_matter(name):
    objective = VARIANTS[name]
    outputs = seen(objective)
    padded = {
        key: v.detach().where(outputs.mask[..., None], 7.0) for key, v in vars(outputs.velocities).items()
    }
    changed = replace(outputs, velocities=Velocities(**padded))
    assert torch.allclose(objective(outputs).loss, objective(changed).loss, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].batch_kind == "pair"])
def test_a_step_lowers_the_winners_error_and_not_the_losers(name):
    """At policy = reference, where every objective on pairs agrees on what is better."""
    objective = VARIANTS[name]
    errors = torch.tensor([[0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    velocity = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    outputs = Outputs(
        policy=errors,
        reference=errors.detach(),
        t=torch.tensor([0.5]),
        mask=torch.ones(1, 2, 1, dtype=torch.bool),
        velocities=Velocities(policy=velocity, target=velocity, reference=velocity),
    )
    if name in EXCEPTIONS:
        return
    winner, loser = torch.autograd.grad(objective(outputs).loss.sum(), errors)[0][0]
    assert winner > 0
    assert loser < 0


@pytest.mark.parametrize("bad", [{"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}])
def test_wrong_hyper_parameters_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        DPO(**bad)


def test_auto_beta_gives_an_average_margin_the_gradient_factor_asked_for():
    objective = DPO(beta=500.0, target_factor=0.2, fixed_steps=2, margin_decay=0.0, beta_range=(1.0, 1e6))
    running: dict[str, float] = {}
    betas = []
    for _ in range(4):
        result = objective(replace(pair(0.2, 0.9, 0.3, 0.7), running=running))
        betas.append(result.metrics["beta"].item())
        running = objective.update(running, {name: v.mean().item() for name, v in result.metrics.items()})
    assert betas[:2] == [500.0, 500.0]  # fixed at first
    assert betas[2] == pytest.approx(2 * math.log(4) / 0.3)  # -2 logit(0.2) / |0.1 + 0.2|
    assert result.metrics["gradient_factor"].item() == pytest.approx(0.2)


def test_auto_beta_stays_in_its_range_and_survives_a_margin_of_zero():
    objective = DPO(target_factor=0.2, fixed_steps=0, beta_range=(10.0, 5000.0))
    assert objective.beta_at({"steps": 1, "margin_size": 1e-9}) == 5000.0
    assert objective.beta_at({"steps": 1, "margin_size": 1e3}) == 10.0
    assert objective.beta_at({"steps": 1, "margin_size": 0.0}) == objective.beta


def test_the_safeguard_keeps_the_winner_from_getting_worse():
    """A gradient step on the predictions themselves, where the guarantee is exact to first order."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 2, 8, 4, generator=generator, dtype=torch.float64)
    off = torch.randn(1, 1, 8, 4, generator=generator, dtype=torch.float64)
    start = target + off * torch.tensor([0.1, 0.5])[None, :, None, None]  # the loser is far off, the same way

    def winner_change(mu):
        prediction = start.clone().requires_grad_()
        errors = ((prediction - target) ** 2).mean((2, 3))
        outputs = Outputs(
            policy=errors,
            reference=errors.detach(),
            mask=torch.ones(1, 2, 8, dtype=torch.bool),
            velocities=Velocities(policy=prediction, target=target, reference=start),
        )
        DPO(beta=4.0, safeguard=mu)(outputs).loss.sum().backward()
        pull = prediction.grad[:, 0] + prediction.grad[:, 1]  # what shared weights would feel
        winner = 2 * (start - target)[:, 0]
        return -(pull * winner).sum().item(), winner.square().sum().item()

    assert winner_change(None)[0] > 0  # unguarded, the winner's error rises
    change, most = winner_change(0.25)
    factor = 4.0 / 2 * 0.5 / (8 * 4)  # of the loss's gradient at margin zero, a mean over elements
    assert change == pytest.approx(-0.25 * factor * most)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_scale_is_between_nothing_and_all(seed, mu):
    winner, loser = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = loser_scale(winner, loser, mu)
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
    scale = pair_scale(Outputs(policy=errors, reference=errors, velocities=velocities), mu)
    assert scale.item() == pytest.approx(min(1.0, (1 - mu) * variance / ((1 - t) ** 2 * s)), abs=0.02)


def logistic(x):
    return 1 / (1 + math.exp(-x))


def test_kto_sees_the_mean_gain_of_the_step_before():
    objective = KTO(beta=10.0)
    policy = torch.tensor([[0.2], [0.4]], dtype=torch.float64)
    reference = torch.full((2, 1), 0.5, dtype=torch.float64)
    outputs = Outputs(
        policy=policy, reference=reference, score=torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    )
    first = objective(outputs)
    assert first.loss.tolist() == pytest.approx([logistic(-3), logistic(1)])
    running = objective.update({}, {"gain": first.metrics["gain"].mean().item()})
    assert running == {"reference_point": pytest.approx(0.2)}
    second = objective(replace(outputs, running=running))
    assert second.loss.tolist() == pytest.approx([logistic(-1), logistic(-1)])
    assert objective.update({}, {"gain": -1.0}) == {"reference_point": 0.0}


def test_nft_of_an_average_song_pulls_nowhere_when_policy_and_old_agree():
    objective = NFT(kl=0.0)
    outputs = replace(seen(objective), score=torch.zeros(6, 4, dtype=torch.float64))
    velocities = vars(outputs.velocities) | {"old": outputs.velocities.policy.detach()}
    outputs = replace(outputs, velocities=Velocities(**velocities))
    gradient = torch.autograd.grad(objective(outputs).loss.sum(), outputs.velocities.policy)[0]
    assert gradient.abs().max() < 1e-15


def test_theory_weighting_warns():
    with pytest.warns(UserWarning, match="reward hacking"):
        DPO(timestep_weight="theory")


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", 2000 / (2 * 2048 * 64)), ("per_frame", 2000 / 128), ("sum", 1000)]
)
def test_the_kl_coefficient_that_beta_stands_for(reduction, expected):
    frames = torch.tensor([2048.0], dtype=torch.float64)  # 95 s of DiffRhythm's latents: .0076 with means
    found = DPO(beta=2000.0, reduction=reduction).kl_coefficient({}, frames, 64)
    assert found.item() == pytest.approx(expected)
