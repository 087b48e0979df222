"""Advantages, soft labels, and the choice among too many pairs: closed forms and invariants."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.candidates import AXES, candidate, prompt, prompts_of, score, songs

from diffdpo.errors import ConfigError
from diffdpo.mining import Pair, advantages, pick_strongest, soften


def pair(melody, sound, axis="", winner="w", name="p"):
    return Pair(
        prompt_id=name, group=name, winner=winner, loser="l", rule="r",
        margins={"melody": melody, "sound": sound}, axis=axis,
    )  # fmt: skip


def test_an_advantage_is_the_weighted_sum_of_z_scores():
    # melody 1, 2, 3 and sound 6, 0, 0: z = ∓√1.5, 0 and √2, -√½, -√½
    group = prompt(a=(1.0, 6.0), b=(2.0, 0.0), c=(3.0, 0.0))
    ratings = advantages(prompts_of(group), AXES, {"sound": 0.5}, rescale=False)
    assert ratings == {
        "a": pytest.approx(-math.sqrt(1.5) + math.sqrt(2) / 2),
        "b": pytest.approx(-math.sqrt(0.5) / 2),
        "c": pytest.approx(math.sqrt(1.5) - math.sqrt(0.5) / 2),
    }


def test_different_merits_stay_different_where_grpo_makes_them_one():
    """GDPO's own example: of two rewards of 0 or 1, (0, 1) against (0, 2) points."""
    one = advantages(prompts_of(prompt(a=(0.0, 0.0), b=(1.0, 0.0))), AXES, {}, rescale=False)
    two = advantages(prompts_of(prompt(a=(0.0, 0.0), b=(1.0, 1.0))), AXES, {}, rescale=False)
    assert (one["b"], two["b"]) == (1.0, 2.0)  # normalising the sum of rewards gives 1 for both


@given(group=songs(score), weight=st.floats(0.1, 10))
def test_advantages_have_mean_zero_in_each_prompt_and_spread_one_over_all(group, weight):
    ratings = advantages(prompts_of(group), AXES, {"melody": weight})
    for name in "ab":
        mine = [ratings[c.sample_id] for c in group if c.prompt_id == name and c.sample_id in ratings]
        assert sum(mine) == pytest.approx(0, abs=1e-6)
    if max(map(abs, ratings.values()), default=0) > 1e-6:
        assert sum(a**2 for a in ratings.values()) / len(ratings) == pytest.approx(1)


@given(group=songs(score), factor=st.floats(0.1, 10))
def test_the_common_size_of_weights_does_not_matter(group, factor):
    plain = advantages(prompts_of(group), AXES, {})
    scaled = advantages(prompts_of(group), AXES, dict.fromkeys(AXES, factor))
    # Scores that differ by 1e-8 are divided by that.
    assert scaled == pytest.approx(plain, rel=1e-7, abs=1e-7)


def test_songs_without_numbers_and_lone_songs_have_no_advantage():
    group = [*prompt(a=(1.0, 1.0), b=(2.0, 2.0), c=(math.nan, 3.0)), candidate("q", "lone", 1.0, 1.0)]
    assert advantages(prompts_of(group), AXES, {}) == {"a": pytest.approx(-1), "b": pytest.approx(1)}


def test_tied_songs_have_advantage_zero():
    assert advantages(prompts_of(prompt(a=(1.0, 1.0), b=(1.0, 1.0))), AXES, {}) == {"a": 0.0, "b": 0.0}


def test_axes_that_cancel_each_other_leave_nothing_to_rescale():
    group = prompt(a=(0.1, 0.9), b=(0.3, 0.7), c=(0.7, 0.3))
    assert advantages(prompts_of(group), AXES, {}) == pytest.approx({"a": 0, "b": 0, "c": 0}, abs=1e-12)


def test_a_weight_for_an_axis_that_is_not_mined_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'melody'"):
        advantages(prompts_of(prompt(a=(1.0, 1.0))), AXES, {"melodi": 2.0})


@pytest.mark.parametrize(
    ("mined", "weights", "probability"),
    [
        (pair(2.0, 0.0), {}, 1 / (1 + math.exp(-2.0))),  # mean margin 1, temperature ½
        (pair(2.0, 0.0), {"melody": 3.0}, 1 / (1 + math.exp(-3.0))),
        (pair(2.0, -1.0, axis="melody"), {"melody": 0.0}, 1 / (1 + math.exp(-4.0))),  # its own axis alone
        (pair(0.0, 0.0), {}, 0.5),
        (pair(1.0, -3.0), {}, 0.5),  # never below: a pair says who wins
        (pair(1e6, 1e6), {}, 1.0),
    ],
)
def test_a_soft_label_is_the_sigmoid_of_the_margin(mined, weights, probability):
    assert soften(mined, 0.5, weights).soft_label == pytest.approx(probability)


@given(margin=st.floats(0, 50), more=st.floats(0, 50), temperature=st.floats(0.01, 100))
def test_soft_labels_rise_with_the_margin_and_stay_probabilities(margin, more, temperature):
    low = soften(pair(margin, margin), temperature, {}).soft_label
    high = soften(pair(margin + more, margin + more), temperature, {}).soft_label
    assert 0.5 <= low <= high <= 1.0


def test_without_a_temperature_labels_are_hard():
    assert soften(pair(0.1, 0.1), 0.0, {}).soft_label == 1.0


def test_all_pairs_are_kept_in_their_order_without_a_limit():
    assert pick_strongest([pair(1.0, 1.0), pair(2.0, 2.0)], 0, {}) == [0, 1]
    assert pick_strongest([pair(1.0, 1.0), pair(2.0, 2.0)], 2, {}) == [0, 1]


def test_axes_take_turns_each_with_its_strongest():
    pairs = [
        pair(1.0, 0.0, "melody", "a"),
        pair(9.0, 0.0, "melody", "b"),
        pair(8.0, 0.0, "melody", "c"),
        pair(0.0, 0.1, "sound", "d"),
    ]
    assert pick_strongest(pairs, 1, {}) == [1]
    assert pick_strongest(pairs, 2, {}) == [1, 3]
    assert pick_strongest(pairs, 3, {}) == [1, 3, 2]


@given(st.lists(st.tuples(score, score), max_size=9), st.integers(1, 9))
def test_the_strongest_are_as_many_as_allowed_and_no_weaker_than_the_rest(margins, limit):
    pairs = [pair(m, s, winner=f"w{i}") for i, (m, s) in enumerate(margins)]
    kept = pick_strongest(pairs, limit, {})
    assert len(kept) == min(limit, len(pairs)) == len(set(kept))
    means = [(m + s) / 2 for m, s in margins]
    left = [means[i] for i in range(len(pairs)) if i not in kept]
    assert all(means[i] >= max(left) for i in kept) if left else True


@given(low=st.floats(-10, 10), width=st.floats(0.01, 10), other_low=st.floats(-1e6, 1e6))
def test_a_song_whose_axes_cancel_is_neither_liked_nor_disliked(low, width, other_low):
    """Of two songs z is ±1 on each axis, but for a rounding that must not become an opinion."""
    group = prompt(a=(low, other_low + width), b=(low + width, other_low))
    assert advantages(prompts_of(group), AXES, {}) == {"a": 0.0, "b": 0.0}
