"""Constraints before sums, the order of songs, what choosing gains."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffdpo.errors import ConfigError
from diffdpo.evaluation.best_of_n import best_of_n_kl
from diffdpo.parts import build_scorers
from diffdpo.search.best_of_n import expected_gain
from diffdpo.search.engine import choice_gains
from diffdpo.search.reward import Constraint, Reward, RewardConfig, rank, reward_of, shipped_units

GATES = {
    "seconds": 10.0, "non_finite_ratio": 0.0, "silence_ratio": 0.0, "clip_run_ratio": 0.0, "true_peak_db": -1.0,
    "dc_offset": 0.0,
}  # fmt: skip
UNIT = {"harmony.key": 1.0, "rhythm.pulse": 1.0}
songs = st.lists(
    st.builds(Reward, st.floats(-5, 5), st.sampled_from([0.0, 0.0, 0.5, 2.0, math.inf])),
    min_size=1,
    max_size=12,
)


@given(songs)
def test_a_song_that_violates_never_wins_while_another_does_not(rewards):
    best = rewards[rank(rewards)[0]]
    assert best.feasible or not any(reward.feasible for reward in rewards)
    feasible = [reward.value for reward in rewards if reward.feasible]
    if feasible:
        assert best.value == max(feasible)
    else:
        assert best.violation == min(reward.violation for reward in rewards)


@given(songs)
def test_of_equal_songs_the_earlier_is_first(rewards):
    order = rank(rewards)
    assert sorted(order) == list(range(len(rewards)))
    for first, second in pairwise(order):
        key, next_key = rewards[first].key, rewards[second].key
        assert key > next_key or (key == next_key and first < second)


def test_a_reward_is_the_weighted_mean_in_standard_deviations():
    cfg = RewardConfig(
        weights={"harmony.key": 3.0, "rhythm.pulse": -1.0}, scales={"harmony.key": 0.5, "rhythm.pulse": 2.0}
    )
    centers = {axis: shipped_units()[axis][0] for axis in cfg.weights}
    axes = {"harmony.key": centers["harmony.key"] + 1.0, "rhythm.pulse": centers["rhythm.pulse"] + 2.0}
    reward = reward_of(cfg, axes, GATES)
    assert reward.value == pytest.approx((3 * 1.0 / 0.5 - 1 * 2.0 / 2.0) / 4)
    assert reward.feasible


@pytest.mark.parametrize(
    ("constraint", "value", "violation"),
    [
        (Constraint("harmony.key", low=0.5), 0.5, 0.0),
        (Constraint("harmony.key", low=0.5), 0.2, 0.3),
        (Constraint("harmony.key", high=0.5), 0.9, 0.4),
        (Constraint("harmony.key", low=0.1, high=0.5), 0.3, 0.0),
        (Constraint("harmony.key", low=0.1), math.nan, math.inf),
    ],
)
def test_violations_in_standard_deviations(constraint, value, violation):
    cfg = RewardConfig(weights={"rhythm.pulse": 1.0}, constraints=[constraint], scales={"harmony.key": 2.0})
    reward = reward_of(cfg, {"rhythm.pulse": 0.0, "harmony.key": value}, GATES)
    assert reward.violation == pytest.approx(violation / 2)


def test_silence_and_missing_numbers_cannot_win():
    silent = reward_of(
        RewardConfig(), {"critic.quality": 9.0, "structure.order": 9.0}, {**GATES, "silence_ratio": 1}
    )
    nameless = reward_of(RewardConfig(), {"critic.quality": math.nan, "structure.order": 9.0}, GATES)
    poor = reward_of(RewardConfig(), {"critic.quality": -9.0, "structure.order": -9.0}, GATES)
    assert rank([silent, nameless, poor])[0] == 2
    assert reward_of(
        RewardConfig(gates=False),
        {"critic.quality": 9.0, "structure.order": 9.0},
        {**GATES, "silence_ratio": 1},
    ).feasible


@pytest.mark.parametrize(
    "settings",
    [
        {"scales": {"harmony.key": 0.0}},
        {"constraints": [{"axis": "harmony.key"}]},
        {"constraints": [{"axis": "harmony.key", "low": 2.0, "high": 1.0}]},
    ],
)
def test_impossible_rewards_are_refused(settings):
    with pytest.raises(ValueError, match=r"search\.reward"):
        RewardConfig(**{**settings, **(
            {"constraints": [Constraint(**entry) for entry in settings["constraints"]]}
            if "constraints" in settings else {}
        )})  # fmt: skip


def test_an_axis_of_no_scorer_is_refused():
    with pytest.raises(ConfigError, match=r"harmony.kez.*Did you mean 'harmony.key'"):
        RewardConfig(weights={"harmony.kez": 1.0}).check()


def test_gain_and_divergence_are_those_of_order_statistics():
    """E[max] of n normal numbers and log n - (n - 1) / n: 2, 4, 8, 16, 32 (search.md, section 1.1)."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(400, 64)).tolist()
    gains = {entry.n: entry for entry in choice_gains(rewards)}
    for n, gain, kl in [
        (2, 0.564, 0.193),
        (4, 1.029, 0.636),
        (8, 1.424, 1.204),
        (16, 1.766, 1.835),
        (32, 2.070, 2.497),
    ]:
        assert gains[n].gain == pytest.approx(gain, abs=0.03)
        assert gains[n].kl == pytest.approx(kl, abs=1e-3)
        assert gains[n].kl == best_of_n_kl(n)
    assert gains[1].gain == pytest.approx(0, abs=1e-12)


def test_songs_without_a_number_gain_nothing():
    assert [entry.n for entry in choice_gains([[0.0, math.nan, 1.0], [1.0, 2.0, 3.0]])] == [1, 2]
    assert choice_gains([]) == []
    assert choice_gains([[math.nan]]) == []


def test_the_gain_of_one_more_song_is_that_of_a_normal_law():
    rewards = [0.3, -1.2, 0.9, 1.4, -0.5]
    mean, deviation = np.mean(rewards), np.std(rewards, ddof=1)
    draws = np.random.default_rng(1).normal(mean, deviation, 2_000_000)
    assert expected_gain(rewards) == pytest.approx(np.maximum(draws - max(rewards), 0).mean(), abs=1e-3)
    assert expected_gain([1.0, 1.0, 1.0, 1.0]) == 0


def test_scorers_of_a_search_may_have_arguments():
    """Those that need none stay names; arguments of a scorer whose axes do not count are a mistake."""
    weights = {"reward.preference": 1.0, "harmony.key": 1.0}
    args = {"reward": {"path": "runs/reward", "caution": 1.0}}
    entries = RewardConfig(weights=weights, scorer_args=args).scorers()
    assert sorted(entries, key=str) == sorted(
        ["harmony", {"name": "reward", "args": args["reward"]}], key=str
    )
    scorers = build_scorers(entries)
    assert (scorers["reward"].path, scorers["reward"].caution) == ("runs/reward", 1.0)
    with pytest.raises(ConfigError, match=r"'songeval'.*these do: harmony"):
        RewardConfig(weights={"harmony.key": 1.0}, scorer_args={"songeval": {}}).check()
