"""Mining: properties that any rule must have, and hand-made prompts whose pairs are known."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffdpo.mining import RULES, BestVersusWorst, z_scores
from diffdpo.types import Candidate

AXES = ("melody", "sound")


def candidate(prompt, name, melody, sound):
    return Candidate(
        prompt_id=prompt, group=prompt, sample_id=name, scores={"melody": melody, "sound": sound}
    )


score = st.floats(-5, 5)
songs = st.lists(st.tuples(st.sampled_from("ab"), score, score), min_size=0, max_size=12).map(
    lambda rows: [candidate(p, f"{p}{i:02d}", m, s) for i, (p, m, s) in enumerate(rows)]
)


def test_the_best_meets_the_worst():
    group = [candidate("p", "good", 3, 3), candidate("p", "middle", 2, 2), candidate("p", "bad", 1, 1)]
    (pair,) = BestVersusWorst()(group, AXES).pairs
    assert (pair.winner, pair.loser) == ("good", "bad")
    spread = 2 / math.sqrt(2 / 3)  # three equidistant values: their range in standard deviations
    assert pair.margins == {"melody": pytest.approx(spread), "sound": pytest.approx(spread)}


def test_one_axis_cannot_pay_for_another():
    group = [candidate("p", "tuneful", 9, 1), candidate("p", "clean", 1, 2)]
    mined = BestVersusWorst()(group, AXES)
    assert mined.pairs == ()
    assert "without a loss" in mined.skipped["p"]
    assert len(BestVersusWorst(min_axis_margin=-5.0, weights={"sound": 0.0})(group, AXES).pairs) == 1


def test_ties_teach_nothing():
    group = [candidate("p", name, 1.0, 2.0) for name in "abc"]
    assert BestVersusWorst()(group, AXES).skipped == {"p": "all candidates are tied on every axis"}


def test_a_score_that_is_not_a_number_takes_its_song_out():
    group = [candidate("p", "a", math.nan, 9), candidate("p", "b", 2, 2), candidate("p", "c", 1, 1)]
    (pair,) = BestVersusWorst()(group, AXES).pairs
    assert (pair.winner, pair.loser) == ("b", "c")
    assert "1 candidate(s)" in BestVersusWorst()(group[:2], AXES).skipped["p"]


def test_no_song_is_both_winner_and_loser():
    group = [candidate("p", f"s{i}", i, i) for i in range(6)]
    pairs = BestVersusWorst(pairs_per_prompt=9)(group, AXES).pairs
    assert len(pairs) > 1
    assert not {p.winner for p in pairs} & {p.loser for p in pairs}


@pytest.mark.parametrize("name", sorted(RULES))
@given(group=songs, seed=st.integers(0, 9))
def test_pairs_stay_within_prompts_and_do_not_depend_on_order(name, group, seed):
    rule = RULES[name]()
    mined = rule(group, AXES)
    shuffled = random.Random(seed).sample(group, len(group))
    assert rule(shuffled, AXES) == mined
    prompt_of = {c.sample_id: c.prompt_id for c in group}
    for pair in mined.pairs:
        assert prompt_of[pair.winner] == prompt_of[pair.loser] == pair.prompt_id
        assert pair.winner != pair.loser
    assert {p.prompt_id for p in mined.pairs} | set(mined.skipped) == set(prompt_of.values())


@given(group=songs, scale=st.floats(0.1, 100), shift=st.floats(-50, 50))
def test_the_scale_of_an_axis_does_not_matter(group, scale, shift):
    moved = [
        candidate(
            c.prompt_id,
            c.sample_id,
            round(c.scores["melody"], 2) * scale + shift,
            round(c.scores["sound"], 2),
        )
        for c in group
    ]
    plain = [
        candidate(c.prompt_id, c.sample_id, round(c.scores["melody"], 2), round(c.scores["sound"], 2))
        for c in group
    ]
    chosen = [
        [(p.prompt_id, round(sum(p.margins.values()), 6)) for p in BestVersusWorst()(g, AXES).pairs]
        for g in (plain, moved)
    ]
    assert chosen[0] == chosen[1]


def test_z_scores_have_mean_zero_and_spread_one():
    group = [candidate("p", f"s{i}", i**2, 3.0) for i in range(5)]
    z = z_scores(group, AXES)
    melody = [z[c.sample_id]["melody"] for c in group]
    assert sum(melody) == pytest.approx(0)
    assert sum(value**2 for value in melody) / 5 == pytest.approx(1)
    assert all(z[c.sample_id]["sound"] == 0 for c in group)


@pytest.mark.parametrize("bad", [{"min_margin": 0.0}, {"pairs_per_prompt": 0}, {"weights": {"melody": -1.0}}])
def test_wrong_parameters_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        BestVersusWorst(**bad)
