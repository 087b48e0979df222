"""The ranking from votes: closed forms, an independent Bradley-Terry, derivatives, dishonest raters."""

from dataclasses import replace

import choix
import numpy as np
import pytest
from scipy.stats import kendalltau
from support.vote_world import simulate_votes

from diffdpo.preferences.ranking import (
    FIRST,
    SECOND,
    TIE,
    RankingModel,
    VoteArrays,
    curvature,
    fit_ranking,
    loss_and_slope,
    prior,
)
from diffdpo.preferences.ranking_posterior import invert_curvature

PLAIN = RankingModel(reliability_deviation=0, bias_deviation=0)
FULL = RankingModel()


def repeat_votes(counts):
    """Votes of one rater on songs 0 and 1: {outcome: count}."""
    outcome = np.repeat(list(counts), list(counts.values()))
    zeros = np.zeros(len(outcome), int)
    return VoteArrays.of(zeros, zeros + 1, zeros, outcome)


def test_plain_votes_give_the_ranking_of_an_independent_library():
    _, _, _, votes = simulate_votes(0, spam=0, adversaries=0)
    wins = np.where(votes.outcome == FIRST, [votes.first, votes.second], [votes.second, votes.first]).T
    expected = choix.opt_pairwise(40, wins.tolist(), alpha=0.5 / 1.5**2, tol=1e-12)
    assert fit_ranking(votes, PLAIN).utility == pytest.approx(expected, abs=1e-4)


def test_two_songs_with_ties_have_the_closed_form_of_davidson():
    """With f wins, t ties and l losses: exp(s0 - s1) = f / l and ν = t / sqrt(f l)."""
    wide = replace(PLAIN, utility_deviation=1e4, tie_deviation=1e4)
    ranking = fit_ranking(repeat_votes({FIRST: 48, TIE: 36, SECOND: 12}), wide)
    assert ranking.utility[0] - ranking.utility[1] == pytest.approx(np.log(4), abs=1e-4)
    assert ranking.tie == pytest.approx(36 / np.sqrt(48 * 12), abs=1e-4)


def test_weights_stand_for_repeated_votes_and_order_of_votes_says_nothing():
    votes = repeat_votes({FIRST: 2, SECOND: 1})
    heavy = replace(votes, weight=np.full(3, 4.0))
    many = repeat_votes({SECOND: 4, FIRST: 8})
    assert fit_ranking(heavy, FULL).utility == pytest.approx(fit_ranking(many, FULL).utility, abs=1e-5)


def test_votes_with_sides_exchanged_say_the_same_of_songs_and_the_reverse_of_sides():
    _, _, _, votes = simulate_votes(1, songs=8, raters=6, tie=0.7)
    mirrored = replace(votes, first=votes.second, second=votes.first, outcome=-votes.outcome)
    ranking, mirror = fit_ranking(votes, FULL), fit_ranking(mirrored, FULL)
    assert mirror.utility == pytest.approx(ranking.utility, abs=1e-4)
    assert mirror.bias == pytest.approx(-ranking.bias, abs=1e-4)


@pytest.mark.parametrize("tie", [0.0, 0.8])
@pytest.mark.parametrize(
    "model", [PLAIN, FULL, replace(FULL, bias_deviation=0)], ids=["plain", "full", "no side"]
)
def test_derivatives_are_those_of_the_loss(model, tie):
    _, _, _, votes = simulate_votes(2, songs=6, raters=4, each=15, tie=tie)
    votes = replace(votes, weight=np.linspace(0.5, 1.5, 60), shift=np.linspace(-1, 1, 60))
    mean, precision = prior(votes, model)
    rest = votes, model, mean, precision
    theta = mean + np.random.default_rng(0).normal(0, 0.5, len(mean))
    slope, step = loss_and_slope(theta, *rest)[1], 1e-5
    units = step * np.eye(len(theta))
    numeric = [
        (loss_and_slope(theta + u, *rest)[0] - loss_and_slope(theta - u, *rest)[0]) / 2 / step for u in units
    ]
    assert slope == pytest.approx(numeric, abs=1e-5)
    hessian = np.array(
        [loss_and_slope(theta + u, *rest)[1] - loss_and_slope(theta - u, *rest)[1] for u in units]
    ) / (2 * step)
    blocks = curvature(theta, votes, model)
    assert blocks.cross == pytest.approx(hessian[:6, 6:], abs=1e-5)
    assert blocks.corner == pytest.approx(hessian[6:, 6:], abs=1e-5)
    design = np.eye(6)[votes.first] - np.eye(6)[votes.second]
    songs = (design.T * blocks.weight) @ design + np.diag(blocks.precision)
    assert songs == pytest.approx(hessian[:6, :6], abs=1e-5)


def test_the_covariance_is_the_inverse_of_the_dense_curvature():
    """Two components of songs, which only the raters connect."""
    _, _, _, votes = simulate_votes(3, songs=5, raters=4, each=30, tie=0.5)
    left, right = votes, replace(votes, first=votes.first + 5, second=votes.second + 5)
    both = VoteArrays.of(
        *(
            np.concatenate([getattr(v, name) for v in (left, right)])
            for name in ("first", "second", "rater", "outcome")
        )
    )
    ranking = fit_ranking(both, FULL)
    theta = np.concatenate([ranking.utility, ranking.reliability, ranking.bias, [np.log(ranking.tie)]])
    blocks = curvature(theta, both, FULL)
    design = np.eye(10)[both.first] - np.eye(10)[both.second]
    top = (design.T * blocks.weight) @ design + np.diag(blocks.precision)
    covariance = np.linalg.inv(np.block([[top, blocks.cross], [blocks.cross.T, blocks.corner]]))
    posterior = invert_curvature(blocks, both.first, both.second)
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(10), np.arange(10)))
    assert posterior.covariance(i, j) == pytest.approx(covariance[i, j], rel=1e-6, abs=1e-9)
    assert posterior.rater_deviations == pytest.approx(np.sqrt(covariance.diagonal()[10:]), rel=1e-6)
    assert ranking.component.tolist() == [0] * 5 + [1] * 5
    centre = np.kron(np.eye(2), np.eye(5) - 1 / 5)
    value, deviation = ranking.relative()
    assert value == pytest.approx(centre @ ranking.utility)
    assert deviation**2 == pytest.approx((centre @ covariance[:10, :10] @ centre).diagonal(), rel=1e-6)


def test_adversaries_are_used_and_spam_is_not():
    """One rater says the reverse of five: with reliability the reverse is as good as the truth."""
    _, reliability, _, votes = simulate_votes(4, songs=12, raters=20, each=60)
    ranking = fit_ranking(votes, FULL)
    assert (ranking.reliability[reliability == -1] < -0.3).all()
    assert np.abs(ranking.reliability[reliability == 0]).max() < 0.55
    assert (ranking.reliability[reliability == 1] > 0.4).all()


def test_control_pairs_tell_of_raters_and_not_of_songs():
    """A rater who fails known pairs is unreliable before any vote on songs."""
    rater = np.repeat([0, 1], 10)
    zeros = np.zeros(20, int)
    votes = replace(
        VoteArrays.of(zeros, zeros, rater, np.where(rater == 0, FIRST, SECOND), songs=2),
        shift=np.full(20, 3.0),
    )
    ranking = fit_ranking(votes, replace(FULL, bias_deviation=0))
    assert ranking.utility == pytest.approx([0, 0], abs=1e-6)
    assert ranking.reliability[0] > 1 > 0 > ranking.reliability[1]


def test_side_biases_are_recovered():
    _, _, bias, votes = simulate_votes(5, raters=20, each=400, spam=0, adversaries=0, side=1.0)
    ranking = fit_ranking(votes, replace(FULL, bias_deviation=1.0))
    ratio = (ranking.bias - bias) / ranking.bias_deviation
    assert np.corrcoef(ranking.bias, bias)[0, 1] > 0.95
    assert np.abs(ratio).max() < 4


def test_spam_and_adversaries_leave_the_ranking_where_plain_bradley_terry_fails():
    """40 songs, 30 raters × 40 votes, 30 % spam, 15 % adversaries, side bias 0.5; 12 seeds."""
    plain, full = [], []
    for seed in range(12):
        utility, _, _, votes = simulate_votes(seed)
        for taus, model in ((plain, PLAIN), (full, FULL)):
            taus.append(kendalltau(fit_ranking(votes, model).utility, utility).statistic)
    assert np.mean(full) >= 0.78
    assert np.mean(plain) < 0.62


def test_honest_raters_lose_little_by_the_larger_model():
    gains = []
    for seed in range(4):
        utility, _, _, votes = simulate_votes(seed, spam=0, adversaries=0, side=0)
        taus = [kendalltau(fit_ranking(votes, model).utility, utility).statistic for model in (PLAIN, FULL)]
        gains.append(taus[1] - taus[0])
    assert np.mean(gains) > -0.02


def test_intervals_hold_the_truth():
    """Songs of the prior, honest raters: of 95 % intervals most hold; soak has the share."""
    hits = []
    for seed in range(4):
        utility, _, _, votes = simulate_votes(seed, songs=20, spam=0, adversaries=0, side=0.5)
        ranking = fit_ranking(votes, FULL)
        value, deviation = ranking.relative()
        hits.append(np.abs(value - utility + utility.mean()) <= 1.96 * deviation)
    assert np.mean(hits) > 0.8


def test_the_predicted_preference_is_the_share_of_a_usual_listener():
    ranking = fit_ranking(repeat_votes({FIRST: 300, SECOND: 100}), replace(PLAIN, utility_deviation=1e3))
    zero, unit = np.array([0]), np.array([1])
    assert ranking.preference(zero, unit)[0] == pytest.approx(0.75, abs=0.01)
    assert ranking.preference(unit, zero)[0] == pytest.approx(1 - ranking.preference(zero, unit)[0])
