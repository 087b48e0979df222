"""Songs of a data set against the model's answers: who is paired, in which order, and what lies beside it."""

import math

import pytest
from support.candidates import AXES, candidate

from diffdpo.errors import ConfigError
from diffdpo.mining import (
    BestVersusWorst,
    RealVersusSample,
    Union,
    finish_pairs,
    mine_candidates,
    to_candidates,
)

ANSWERS = [
    candidate("a", "a.000", 2.0, 2.0),
    candidate("a", "a.001", 0.0, 1.0),
    candidate("a", "a.002", 1.0, 0.5),
    candidate("b", "b.000", 1.0, 1.0),
    candidate("c", "c.000", math.nan, 1.0),
]
SONGS = {"a": "song-a", "c": "song-c"}


def mine(rule, axes=AXES):
    return mine_candidates(to_candidates(ANSWERS, axes), rule, songs=SONGS)


def members(pairs):
    return [(pair.winner, pair.loser, pair.is_real) for pair in pairs]


def test_the_song_of_a_caption_wins_over_its_answers_and_others_have_a_reason():
    result = mine(RealVersusSample(pairs_per_prompt=2))
    assert members(result.pairs) == [("song-a", "a.000", True), ("song-a", "a.001", True)]
    assert all(pair.margins == {} and pair.soft_label == 1 and not pair.axis for pair in result.pairs)
    assert result.reasons == {
        "b": "no song of the data set has this caption",
        "c": "0 answers with a score on every axis, 1 in all",
    }


def test_scores_are_not_needed():
    result = mine(RealVersusSample(pairs_per_prompt=9), axes=())
    assert [pair.loser for pair in result.pairs] == ["a.000", "a.001", "a.002", "c.000"]
    assert result.ratings == {}


def test_the_worst_answers_lose_first_by_the_weighted_mean():
    def losers(**weights):
        rule = RealVersusSample(losers="worst", pairs_per_prompt=2, weights=weights)
        return [pair.loser for pair in mine(rule).pairs]

    assert losers(sound=0.0) == ["a.001", "a.002"]
    assert losers(melody=0.0) == ["a.002", "a.001"]
    with pytest.raises(ConfigError, match="losers=worst needs scores"):
        mine(RealVersusSample(losers="worst"), axes=())


def test_in_a_union_a_song_over_an_answer_contradicts_no_pair_of_answers():
    """Also where an answer and a song have one id."""
    union = Union([RealVersusSample(pairs_per_prompt=3), BestVersusWorst()])
    result = mine_candidates(to_candidates(ANSWERS, AXES), union, songs={"a": "a.001"})
    assert members(result.pairs)[:3] == [("a.001", f"a.00{k}", True) for k in range(3)]
    assert [pair.winner for pair in result.pairs[3:]] == ["a.000"]
    assert not result.pairs[3].is_real


def test_pairs_without_margins_keep_hard_labels_and_take_turns():
    union = Union([RealVersusSample(pairs_per_prompt=2), BestVersusWorst()])
    pairs = mine(union).pairs
    soft = [pair for _, pair in finish_pairs(pairs, {}, temperature=1.0)]
    assert [pair.soft_label == 1.0 for pair in soft] == [pair.is_real for pair in pairs]
    strongest = [pair.is_real for _, pair in finish_pairs(pairs, {}, limit=2)]
    assert sorted(strongest) == [False, True]
