"""Best against worst: prompts whose pairs are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.candidates import AXES, apply, candidate, prompt, prompts_of, score, songs

from diffdpo.mining import BestVersusWorst, advantages


def test_the_best_meets_the_worst():
    (pair,) = apply(BestVersusWorst(), prompt(good=(3, 3), middle=(2, 2), bad=(1, 1))).pairs
    assert (pair.winner, pair.loser) == ("good", "bad")
    spread = 2 / math.sqrt(2 / 3)  # three equidistant values: their range in standard deviations
    assert pair.margins == {"melody": pytest.approx(spread), "sound": pytest.approx(spread)}


def test_one_axis_cannot_pay_for_another():
    group = prompt(tuneful=(9, 1), clean=(1, 2))
    mined = apply(BestVersusWorst(), group)
    assert mined.pairs == ()
    assert "without a loss" in mined.reasons["p"]
    assert len(apply(BestVersusWorst(min_axis_margin=-5.0, weights={"sound": 0.0}), group).pairs) == 1


def test_ties_teach_nothing():
    group = [candidate("p", name, 1.0, 2.0) for name in "abc"]
    assert apply(BestVersusWorst(), group).reasons == {"p": "all candidates are tied on every axis"}


def test_songs_without_a_number_are_counted_in_the_reason():
    group = prompt(a=(math.nan, 9), b=(2, 2), c=(1, 1))
    assert "1 candidate(s)" in apply(BestVersusWorst(), group[:2]).reasons["p"]


def test_no_song_is_both_winner_and_loser():
    group = [candidate("p", f"s{i}", i, i) for i in range(6)]
    pairs = apply(BestVersusWorst(pairs_per_prompt=9), group).pairs
    assert len(pairs) > 1
    assert not {p.winner for p in pairs} & {p.loser for p in pairs}


@given(group=songs(score), scale=st.floats(0.1, 100), shift=st.floats(-50, 50))
def test_the_scale_of_an_axis_does_not_matter(group, scale, shift):
    plain, moved = [], []
    for c in group:
        melody, sound = round(c.scores["melody"], 2), round(c.scores["sound"], 2)
        plain.append(candidate(c.prompt_id, c.sample_id, melody, sound))
        moved.append(candidate(c.prompt_id, c.sample_id, melody * scale + shift, sound))
    chosen = [
        [(p.prompt_id, round(sum(p.margins.values()), 6)) for p in apply(BestVersusWorst(), g).pairs]
        for g in (plain, moved)
    ]
    assert chosen[0] == chosen[1]


@given(group=songs(score, prompts="p"), weight=st.floats(0.1, 10))
def test_without_dominance_it_takes_the_widest_gap_of_gdpo_advantages(group, weight):
    weights = {"melody": weight}
    rule = BestVersusWorst(weights=weights, min_axis_margin=-math.inf, min_margin=1e-6)
    a = advantages(prompts_of(group), AXES, weights, rescale=False)
    for pair in apply(rule, group).pairs:
        assert a[pair.winner] - a[pair.loser] == pytest.approx(max(a.values()) - min(a.values()))
        mean = (weight * pair.margins["melody"] + pair.margins["sound"]) / (weight + 1)
        assert (a[pair.winner] - a[pair.loser]) / (weight + 1) == pytest.approx(mean)


def test_an_axis_of_equal_scores_takes_no_advantage_from_the_others():
    group = [candidate("p", name, melody, 0.2) for name, melody in (("a", 0.0), ("b", 0.0), ("c", 1.0))]
    values = advantages(prompts_of(group), AXES, {}, rescale=False)  # the mean of three 0.2 is not 0.2
    assert values == {
        "a": pytest.approx(-(0.5**0.5)),
        "b": pytest.approx(-(0.5**0.5)),
        "c": pytest.approx(2**0.5),
    }
