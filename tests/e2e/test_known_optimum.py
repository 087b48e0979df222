"""Objectives trained, briefly, where the best policy is known: who comes nearer, and what wrong labels teach."""

import pytest
import torch

from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.reward_weighted import RWR
from diffdpo.objectives.terms.restraints import Anchor
from tools.bench.gaussian_world import Mixture, Reward, World
from tools.bench.toy import Budget, Run, measure_policies, train_policies

pytestmark = pytest.mark.slow


def test_rewards_beat_plain_pairs_the_anchor_keeps_winners_and_flipped_labels_teach_the_opposite():
    torch.set_num_threads(1)
    world = World(
        reference=Mixture(
            weights=torch.tensor([0.5, 0.3, 0.2]),
            means=torch.tensor([[-1.5, 0.0], [1.0, 1.5], [1.5, -1.5]]),
            variances=torch.tensor([0.25, 0.36, 0.16]),
        ),
        reward=Reward(slope=torch.tensor([1.0, 0.5])),
    )
    plain = DPO(beta=4.0)  # one nat: 2 dim
    runs = [
        Run(objective=RWR()),
        Run(objective=plain),
        Run(objective=DPO(beta=4.0, anchor=Anchor(winner=2.0))),
        Run(objective=plain, flip_share=1.0),
    ]
    budget = Budget(steps=600, width=64)
    rewarded, pairs, anchored, flipped = measure_policies(
        world, train_policies(world, runs, budget), len(runs), points=1024
    )
    start = world.reference.mean_reward(world.reward)
    assert rewarded["kl_optimum"] < 0.25 < pairs["kl_optimum"]
    assert rewarded["efficiency"] > 0.85
    assert anchored["efficiency"] > pairs["efficiency"] + 0.1
    assert anchored["winner_change"] < 0 < pairs["winner_change"]
    assert flipped["reward"] < start - 0.3
    assert pairs["reward"] > start + 0.3
