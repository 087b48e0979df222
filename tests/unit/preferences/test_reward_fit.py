"""Reward heads: known tastes are found, sides do not matter, ensembles and calibration are what they say."""

from dataclasses import replace

import numpy as np
import pytest

from diffdpo.preferences.reward_fit import (
    RewardFit,
    RewardNetwork,
    fit_linear,
    fit_reward,
    principal_basis,
)
from diffdpo.preferences.reward_head import read_reward_head
from diffdpo.preferences.ties import fit_davidson
from diffdpo.preferences.vote_design import ComponentVotes, design_of, merge_votes
from diffdpo.training.reward_network import NetworkFit

RNG = np.random.default_rng(0)
SONGS, PER_GROUP, SIZE = 240, 8, 12
ROWS = RNG.standard_normal((SONGS, SIZE)) * np.linspace(0.5, 20, SIZE) + 7
TASTE = RNG.standard_normal(SIZE) / np.linspace(0.5, 20, SIZE)


def votes(utility, count=1500, noise=1.0, seed=0, songs=None):
    """A design of votes within groups of songs, by a logistic law."""
    rng = np.random.default_rng(seed)
    group = rng.integers(SONGS // PER_GROUP, size=count)
    places = np.array([g * PER_GROUP + rng.choice(PER_GROUP, 2, replace=False) for g in group])
    margins = utility[places[:, 0]] - utility[places[:, 1]]
    targets = rng.random(count) < 1 / (1 + np.exp(-margins / noise)) if noise else margins > 0
    return design_of(
        [row[None] for row in ROWS] if songs is None else songs,
        places[:, 0].tolist(),
        places[:, 1].tolist(),
        targets.astype(float).tolist(),
        ties=[False] * count,
        groups=[f"g{g}" for g in group],
        raters=[f"r{k % 10}" for k in range(count)],
    )


FIT = RewardFit(members=6, folds=3, l2=[0.3, 3.0, 30.0])


def test_a_linear_taste_is_recovered_on_songs_of_unseen_prompts():
    utility = 2 * ROWS @ TASTE
    design = votes(utility)
    outside = np.isin(design.groups, [f"g{k}" for k in range(6)])
    head = fit_reward(design.take(~outside), FIT).head
    songs = slice(0, 6 * PER_GROUP)
    assert np.corrcoef(head.utility(ROWS[songs]), utility[songs])[0, 1] > 0.95
    assert head.members(ROWS).mean(0).std() == pytest.approx(1)
    assert head.utility(ROWS, caution=2.0) == pytest.approx(head.utility(ROWS) - 2 * head.spread(ROWS))


def test_probabilities_are_calibrated_and_mirror():
    utility = 2 * ROWS @ TASTE
    for calibration in ("temperature", "isotonic"):
        head = fit_reward(votes(utility), replace(FIT, calibration=calibration)).head
        fresh = votes(utility, seed=5, count=4000)
        values = head.utility(ROWS)
        margins = values[fresh.first] - values[fresh.second]
        probability = head.probability(margins)
        assert probability + head.probability(-margins) == pytest.approx(np.ones(len(margins)))
        sure = probability > 0.8
        assert fresh.targets[sure].mean() == pytest.approx(probability[sure].mean(), abs=0.05)


def test_exchanging_the_sides_changes_nothing():
    design = votes(ROWS @ TASTE)
    mirrored = replace(design, first=design.second, second=design.first, targets=1 - design.targets)
    pair = [fit_reward(part, FIT).head.utility(ROWS) for part in (design, mirrored)]
    assert pair[0] == pytest.approx(pair[1], abs=1e-6)


def test_merged_votes_have_the_weights_of_all_votes():
    design = votes(ROWS @ TASTE, count=3000)
    data = ComponentVotes(ROWS / 10, design, np.ones(3000), 0.4)
    merged = merge_votes(data, design.counts)
    assert len(merged.counts) <= SONGS * (PER_GROUP - 1) / 2 < 3000
    assert merged.counts.sum() == 3000
    plain = fit_davidson(
        data.rows[design.first] - data.rows[design.second], design.targets, design.counts, l2=2.0, nu=0.4
    )
    assert fit_linear(data, design.counts[None], 2.0).linear[0] == pytest.approx(plain, abs=1e-6)


def test_a_hidden_layer_finds_what_is_not_linear():
    rows = ROWS[:, :3]
    z = (rows - rows.mean(0)) / rows.std(0)
    utility = 3 * np.abs(z[:, 0]) - 2 * np.abs(z[:, 1])
    design = votes(utility, count=3000, noise=0.5, songs=[row[None] for row in rows])
    outside = np.isin(design.groups, [f"g{k}" for k in range(6)])
    cfg = RewardFit(members=2, folds=2, l2=[0.01], components=0)
    network = NetworkFit(RewardNetwork(hidden=16, steps=200, lr=0.03))
    songs = slice(0, 6 * PER_GROUP)
    linear, hidden = (
        fit_reward(design.take(~outside), cfg, fit_members=fit).head.utility(rows)[songs]
        for fit in (None, network)
    )
    assert np.corrcoef(linear, utility[songs])[0, 1] < 0.4
    assert np.corrcoef(hidden, utility[songs])[0, 1] > 0.8


def test_answers_the_other_way_round_are_used_with_reliability():
    utility = 2 * ROWS @ TASTE
    design = votes(utility, count=2000)
    opponents = np.isin(design.raters, ["r0", "r1", "r2"])
    design = replace(design, targets=np.where(opponents, 1 - design.targets, design.targets))
    fitted = fit_reward(design, replace(FIT, reliability=True))
    assert max(fitted.slopes[name] for name in ("r0", "r1", "r2")) < 0
    assert min(slope for name, slope in fitted.slopes.items() if name not in ("r0", "r1", "r2")) > 0.4


def test_ties_may_be_an_outcome_of_their_own():
    utility = 2 * ROWS @ TASTE
    design = votes(utility)
    margins = utility[design.first] - utility[design.second]
    close = np.abs(margins) < np.quantile(np.abs(margins), 0.2)
    design = replace(design, ties=close, targets=np.where(close, 0.5, design.targets))
    fitted = fit_reward(design, replace(FIT, ties="davidson"))
    assert fitted.nu > 0.1
    assert np.corrcoef(fitted.head.utility(ROWS), utility)[0, 1] > 0.95


def test_windows_of_a_song_are_pairs_that_count_together():
    songs = [np.stack([row, row + 0.1]) for row in ROWS]
    design = votes(ROWS @ TASTE, count=50, songs=songs)
    assert len(design.first) == 100
    assert np.bincount(design.vote, weights=design.counts) == pytest.approx(np.ones(50))
    uneven = design_of(
        [np.zeros((1, 2)), np.ones((3, 2))], [0], [1], [1.0], ties=[False], groups=["g"], raters=["r"]
    )
    assert uneven.first.tolist() == [0, 0, 0]
    assert uneven.second.tolist() == [1, 2, 3]


def test_components_are_those_along_which_songs_differ():
    x = RNG.standard_normal((4000, 3)) * [10.0, 1.0, 0.1]
    for scale_power in (0.0, 0.5, 1.0):
        basis = principal_basis(x, 2, scale_power)
        assert basis.shape == (3, 2)
        assert np.abs(basis[:, 0]).argmax() == 0
        assert ((x @ basis) ** 2).sum(1).mean() == pytest.approx(2, rel=1e-6)
    deviation = (x @ principal_basis(x, 2, 1.0)).std(0)
    assert deviation[0] == pytest.approx(deviation[1], rel=0.05)


def test_a_head_survives_its_file():
    head = fit_reward(votes(ROWS @ TASTE), replace(FIT, calibration="isotonic")).head
    copy = read_reward_head(head.tensors())
    assert copy.utility(ROWS, 0.5) == pytest.approx(head.utility(ROWS, 0.5), abs=1e-4)
    assert copy.probability(np.array([0.3])) == pytest.approx(head.probability(np.array([0.3])), abs=1e-4)
    with pytest.raises(ValueError, match="linear"):
        read_reward_head(head.tensors() | {"linear": np.zeros((1, 2))})
    with pytest.raises(KeyError):
        read_reward_head({"center": np.zeros(2)})


@pytest.mark.parametrize(
    "values", [{"members": 0}, {"l2": []}, {"l2": [0.0]}, {"scale_power": 2.0}, {"folds": 1}]
)
def test_a_fit_of_nonsense_is_refused(values):
    with pytest.raises(ValueError, match="fit"):
        RewardFit(**values)
