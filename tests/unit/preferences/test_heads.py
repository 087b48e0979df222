"""Heads: what an ensemble knows, what it says where it knows little, and the way to a file and back."""

from dataclasses import replace

import numpy as np
import pytest

from diffdpo.preferences.bradley_terry import win_probability
from diffdpo.preferences.heads import HeadFit, UtilityHead, read_head

WEIGHTS = np.array([1.0, -0.5, 0.0])


def simulated_votes(songs: int, seed: int = 0):
    """Pairs of four windows a song, judged by a person with these weights: features, groups, outcomes."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, 4 * songs, 3)) * [1, 2, 5] + [0, 10, -3]
    groups = np.repeat(np.arange(songs), 4)
    margins = (first - second) / [1, 2, 5] @ WEIGHTS * 2
    return first, second, groups, (rng.random(4 * songs) < win_probability(margins)).astype(float)


def make_head(**changes) -> UtilityHead:
    fields = {"center": np.zeros(2), "scale": np.ones(2), "weights": np.array([[1.0, 0.0], [0.0, 1.0]])}
    return UtilityHead(**fields | changes)


def test_a_head_recovers_what_the_votes_were_drawn_from_whatever_the_units_of_features():
    first, second, groups, outcomes = simulated_votes(1500)
    head = HeadFit(l2=1.0, members=8)(first, second, groups, reference=first, targets=outcomes)
    assert head.weights.mean(0) == pytest.approx(2 * WEIGHTS, abs=0.15)
    assert head.temperature == pytest.approx(1, abs=0.15)


def test_the_temperature_makes_votes_on_other_songs_more_likely_when_a_few_songs_over_fit():
    rng = np.random.default_rng(1)

    def with_noise(rows):
        return np.hstack([rows, rng.standard_normal((len(rows), 20))])  # features that say nothing

    first, second, groups, outcomes = simulated_votes(40)
    first, second = with_noise(first), with_noise(second)
    head = HeadFit(l2=0.1, members=4)(first, second, groups, reference=first, targets=outcomes)
    assert head.temperature > 1.5
    first, second, _, outcomes = simulated_votes(500, seed=3)
    first, second = with_noise(first), with_noise(second)

    def surprise(temperature):
        probability = replace(head, temperature=temperature).probability(first, second)
        return -np.log(np.where(outcomes, probability, 1 - probability)).mean()

    assert surprise(head.temperature) < min(surprise(1.0), surprise(3 * head.temperature))


def test_utility_is_the_mean_less_caution_times_the_spread():
    rows = np.array([[1.0, 1.0], [2.0, 0.0], [3.0, -1.0]])
    cautious = make_head(caution=0.5)
    assert cautious.spread(rows) == pytest.approx([0, 2**0.5, 8**0.5])
    assert cautious.utility(rows) == pytest.approx([1, 1 - 0.5 * 2**0.5, 1 - 0.5 * 8**0.5])
    assert make_head(weights=np.array([[1.0, 2.0]]), caution=9.0).utility(rows) == pytest.approx([3, 2, 1])


def test_members_disagree_more_where_no_song_was():
    first, second, groups, outcomes = simulated_votes(60)
    head = HeadFit(members=16, limit=50.0)(first, second, groups, reference=first, targets=outcomes)
    assert head.spread(10 * first).mean() > 3 * head.spread(first).mean()


def test_features_beyond_the_limit_count_as_at_the_limit():
    head = make_head(limit=4.0)
    assert head.utility(np.array([[100.0, 4.0]])) == head.utility(np.array([[4.0, 4.0]])) == [4.0]
    assert head.lowest() == head.utility(np.array([[-1e9, -1e9]]))[0] == -4.0
    rows = 100 * np.random.default_rng(0).standard_normal((500, 2))
    for caution in (0.0, 0.5, 5.0):
        assert make_head(caution=caution).utility(rows).min() >= make_head(caution=caution).lowest()


def test_exchanging_the_two_gives_one_minus_the_probability():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 20, 2))
    head = make_head(temperature=0.7)
    assert head.probability(first, second) == pytest.approx(1 - head.probability(second, first))


def test_units_change_neither_order_nor_probability():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 2))
    head = make_head(temperature=2.0)
    scaled = head.in_units_of(rows)
    assert scaled.members(rows).mean(0).std(ddof=1) == pytest.approx(1)
    assert scaled.probability(rows[:25], rows[25:]) == pytest.approx(head.probability(rows[:25], rows[25:]))


def test_a_head_comes_back_from_its_arrays_and_other_arrays_are_refused():
    head = make_head(temperature=2.0, caution=0.25, limit=3.0)
    arrays = {f"critic.{key}": array for key, array in head.tensors().items()}
    copy, rows = read_head(arrays, "critic"), np.eye(2)
    assert np.array_equal(copy.utility(rows), head.utility(rows))
    assert (copy.temperature, copy.caution, copy.limit) == (2.0, 0.25, 3.0)
    with pytest.raises(KeyError):
        read_head(arrays, "absent")
    with pytest.raises(ValueError, match="weights of"):
        read_head(arrays | {"critic.weights": np.ones((2, 3))}, "critic")
