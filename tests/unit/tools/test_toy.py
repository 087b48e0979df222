"""Policies in the world with a known optimum: what they start from, what they are shown, that runs do not mix."""

import math

import pytest
import torch

from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.kto import KTO
from diffdpo.objectives.reward_weighted import RWR
from tools.bench.gaussian_world import Mixture, Reward, World
from tools.bench.toy import Budget, Policies, Run, label, measure_policies, objective_inputs, train_policies

BRIEF = Budget(steps=3, batch=16, pairs=64, width=8)


def world(frames=1):
    reference = Mixture(
        weights=torch.tensor([0.6, 0.4]),
        means=torch.tensor([[-1.0, 0.5], [1.0, -0.5]]),
        variances=torch.tensor([0.3, 0.5]),
    )
    return World(reference=reference, reward=Reward(slope=torch.tensor([1.0, 0.0])), frames=frames)


@pytest.mark.parametrize("frames", [1, 4])
def test_an_untrained_policy_is_the_reference_bit_for_bit(frames):
    here = world(frames)
    policies = Policies(here, [0, 1], width=8)
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(policies(x, torch.full((2, 5), 0.3)), here.reference.velocity(x, torch.tensor(0.3)))
    first, second = measure_policies(here, policies, 2, points=256)
    assert first == pytest.approx(second, nan_ok=True)
    assert abs(first["kl_reference"]) < 2e-3
    assert first["reward"] == pytest.approx(here.reference.mean_reward(here.reward), abs=0.02)
    assert first["velocity_error"] == pytest.approx(1)
    assert first["winner_change"] == first["loser_change"] == 0
    assert math.isnan(first["efficiency"])


def test_labels_follow_bradley_and_terry():
    pairs = label(world(), 20000, seed=0)
    better = (pairs.rewards[:, 0] - pairs.rewards[:, 1]).double()
    sure = better.abs().sigmoid()
    assert (better > 0).double().mean().item() == pytest.approx(sure.mean().item(), abs=0.01)
    for low, high in ((0.2, 0.6), (1.5, 2.0)):  # calibrated, where it is hard and where it is easy
        there = (better.abs() > low) & (better.abs() < high)
        assert (better[there] > 0).double().mean().item() == pytest.approx(
            sure[there].mean().item(), abs=0.02
        )


def test_a_flipped_pair_is_the_same_pair_the_other_way_round():
    as_is, flipped = label(world(4), 50, seed=3), label(world(4), 50, seed=3, flip_share=1.0)
    assert torch.equal(as_is.songs.flip(1), flipped.songs)
    assert torch.equal(as_is.rewards.flip(1), flipped.rewards)


def test_songs_differ_as_much_in_reward_however_long_they_are():
    spread = [label(world(frames), 4000, seed=1).rewards.flatten().std().item() for frames in (1, 16)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_run_comes_out_of_a_stack_as_if_alone(frames):
    here = world(frames)
    runs = [
        Run(objective=DPO(beta=8.0), seed=1),
        Run(objective=RWR(), seed=2),
        Run(objective=KTO()),
    ]
    together = train_policies(here, runs, BRIEF)
    for i, run in enumerate(runs):
        alone = train_policies(here, [run], BRIEF)
        for one, many in zip(alone.parameters, together.parameters, strict=True):
            assert torch.allclose(one[0], many[i], rtol=1e-4, atol=1e-6)
    assert together.weights[-1].abs().amax((1, 2)).min() > 1e-4  # all of them moved


def test_what_an_objective_is_shown():
    here = world(frames=3)
    generator = torch.Generator().manual_seed(0)
    shown = {name: torch.randn(5, 2, 3, 2, generator=generator) for name in ("policy", "reference", "target")}
    t, rewards = torch.rand(5, generator=generator), torch.randn(5, 2, generator=generator)

    pair = objective_inputs(here, Run(objective=DPO(), soft=True), shown, t, rewards)
    by_hand = sum((shown["policy"][4, 1] - shown["target"][4, 1]).flatten() ** 2) / 6
    assert pair.policy[4, 1].item() == pytest.approx(by_hand.item())
    assert pair.soft_label[0].item() == pytest.approx(1 / (1 + math.exp(rewards[0, 1] - rewards[0, 0])))
    assert pair.mask.shape == (5, 2, 3)

    song = objective_inputs(here, Run(objective=FlowMatching()), shown, t, rewards)
    assert torch.equal(song.policy, pair.policy[:, :1])

    rated = objective_inputs(here, Run(objective=KTO()), shown, t, rewards)
    assert torch.equal(rated.policy[:, 0], pair.policy.flatten())  # winner, loser, winner, ...
    assert rated.score[:4, 0].tolist() == [1, -1, 1, -1]
    assert rated.t[:4].tolist() == [t[0], t[0], t[1], t[1]]
