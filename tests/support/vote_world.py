"""Votes with known utilities and raters: the simulation of docs/howto/votes.md."""

import numpy as np

from diffdpo.preferences.ranking import FIRST, SECOND, TIE, VoteArrays

DEVIATION = 1.5


def simulate_votes(seed, *, songs=40, raters=30, each=40, spam=0.3, adversaries=0.15, side=0.5, tie=0.0):
    """Utilities, reliabilities (1, 0 for spam, -1 for adversaries), side biases, and the votes on random pairs."""
    rng = np.random.default_rng(seed)
    utility = rng.normal(0, DEVIATION, songs)
    reliability = np.ones(raters)
    careless, hostile = int(spam * raters), int(adversaries * raters + 0.5)
    reliability[:careless], reliability[careless : careless + hostile] = 0, -1
    reliability = rng.permutation(reliability)
    bias = rng.normal(0, side, raters)
    rater = np.repeat(np.arange(raters), each)
    first = rng.integers(songs, size=len(rater))
    second = (first + rng.integers(1, songs, size=len(rater))) % songs
    margin = reliability[rater] * (utility[first] - utility[second]) + bias[rater]
    odds = np.stack([np.exp(margin / 2), np.full(len(rater), tie), np.exp(-margin / 2)])
    draws = rng.random(len(rater)) * odds.sum(0)
    outcome = np.select([draws < odds[0], draws < odds[0] + odds[1]], [FIRST, TIE], SECOND)
    votes = VoteArrays.of(first, second, rater, outcome, songs=songs, raters=raters)
    return utility, reliability, bias, votes
