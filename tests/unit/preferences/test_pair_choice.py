"""The choice of the next pair: closed forms of the posterior, the uniform share, sides, and better rankings."""

import time

import numpy as np
import pytest
from scipy.stats import kendalltau

from diffdpo.preferences.pair_choice import (
    PairChoice,
    choose_sides,
    fit_utilities,
    next_pair,
    side_balance,
)


def all_pairs(songs):
    return np.array([(i, j) for i in range(songs) for j in range(i + 1, songs)])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_without_votes_the_posterior_is_the_prior():
    posterior = fit_utilities(4, [], 1.5)
    assert posterior.mean == pytest.approx(np.zeros(4))
    assert posterior.covariance == pytest.approx(2.25 * np.eye(4))
    assert posterior.variance(all_pairs(4)) == pytest.approx(np.full(6, 4.5))


def test_two_songs_have_the_mode_and_curvature_of_the_one_difference():
    """With s = (d/2, -d/2) the log-posterior is 7 log σ(d) + 3 log σ(-d) - d²/(4 τ²): its derivative is zero."""
    answers = [(0, 1, 1.0)] * 7 + [(1, 0, 1.0)] * 3
    posterior = fit_utilities(2, answers, 2.0)
    d = posterior.mean[0] - posterior.mean[1]
    assert posterior.mean.sum() == pytest.approx(0, abs=1e-9)
    assert 7 - 10 * sigmoid(d) - d / 8 == pytest.approx(0, abs=1e-6)
    curvature = 10 * sigmoid(d) * sigmoid(-d) + 1 / 8
    assert posterior.variance(np.array([[0, 1]]))[0] == pytest.approx(1 / curvature)


def test_ties_are_half_votes_and_order_of_sides_is_no_evidence():
    half = fit_utilities(3, [(0, 1, 0.5), (1, 2, 1.0)], 1.5)
    votes = fit_utilities(3, [(0, 1, 0.5), (2, 1, 0.0)], 1.5)
    assert half.mean == pytest.approx(votes.mean)
    assert half.covariance == pytest.approx(votes.covariance)


def test_a_vote_added_later_is_near_the_fit_of_all_votes():
    rng = np.random.default_rng(0)
    pairs = all_pairs(8)
    answers = [
        (int(a), int(b), float(rng.random() < sigmoid(a - b))) for a, b in rng.choice(pairs, 60) - [0, 0]
    ]
    posterior = fit_utilities(8, answers[:40], 1.5)
    for vote in answers[40:]:
        posterior = posterior.after(vote)
    complete = fit_utilities(8, answers, 1.5)
    assert posterior.mean == pytest.approx(complete.mean, abs=0.2)
    assert posterior.variance(pairs) == pytest.approx(complete.variance(pairs), rel=0.3)


def test_variance_that_a_vote_removes_is_that_of_the_update():
    posterior = fit_utilities(3, [(0, 1, 1.0), (1, 0, 1.0)], 1.5)
    pair = np.array([[0, 1]])
    before, after = (p.variance(pair)[0] for p in (posterior, posterior.after((0, 1, 1.0))))
    assert posterior.removable_variance(pair)[0] == pytest.approx(before - after)


def test_the_pair_with_least_votes_comes_next_and_excluded_pairs_never():
    pairs = np.array([(0, 1), (2, 3), (4, 5)])
    answers = [(0, 1, 1.0), (1, 0, 1.0)] * 10 + [(2, 3, 1.0), (3, 2, 1.0)] * 10
    rng, cfg = np.random.default_rng(0), PairChoice(uniform_share=0.2, shortlist=1)
    draws = [next_pair(pairs, answers, (), rng, cfg) for _ in range(300)]
    assert np.mean(np.array(draws) == 2) == pytest.approx(0.8 + 0.2 / 3, abs=0.06)
    assert {next_pair(pairs, answers, {2}, rng, cfg) for _ in range(50)} == {0, 1}
    assert next_pair(pairs, answers, {0, 2}, rng, cfg) == 1
    with pytest.raises(ValueError, match="every pair"):
        next_pair(pairs, answers, {0, 1, 2}, rng, cfg)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_at_least_a_share_of_pairs_is_uniform(share):
    """Two of 45 pairs are never the best ones; uniform choice alone brings them, at the known rate."""
    pairs = np.array([(0, 1)] * 44 + [(2, 3)])
    answers = [(2, 3, 1.0), (3, 2, 1.0)] * 50
    rng = np.random.default_rng(1)
    posterior = fit_utilities(4, answers, 1.5)
    cfg = PairChoice(uniform_share=share, shortlist=1)
    draws = [next_pair(pairs, answers, (), rng, cfg, posterior=posterior) for _ in range(2000)]
    expected = share / 45
    assert np.mean(np.array(draws) == 44) == pytest.approx(expected, abs=4 * (expected / 2000) ** 0.5)


@pytest.mark.parametrize("values", [{"uniform_share": 0.1}, {"prior_deviation": 0.0}, {"shortlist": 0}])
def test_what_cannot_be_configured(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        PairChoice(**values)


def ranking_quality(seed, active, songs=40, votes=360):
    """Kendall's tau with the true order after votes on pairs of active, or of uniform, choice."""
    rng = np.random.default_rng(seed)
    utilities, pairs, answers = rng.normal(0, 1.5, songs), all_pairs(songs), []
    posterior = fit_utilities(songs, [], 1.5)
    for _ in range(votes):
        place = next_pair(pairs, (), (), rng, PairChoice(), posterior=posterior) if active else None
        first, second = map(int, rng.choice(pairs) if place is None else pairs[place])
        answers.append((first, second, float(rng.random() < sigmoid(utilities[first] - utilities[second]))))
        posterior = posterior.after(answers[-1]) if active else posterior
    return kendalltau(fit_utilities(songs, answers, 1.5).mean, utilities).statistic


def test_active_choice_ranks_better_than_uniform_choice_with_as_many_votes():
    gain = np.array([ranking_quality(seed, True) - ranking_quality(seed, False) for seed in range(10)])
    assert gain.mean() - 1.83 * gain.std(ddof=1) / 10**0.5 > 0  # Student's t, one-sided, 5 %


def test_sides_are_balanced_for_songs_and_listeners():
    rng = np.random.default_rng(0)
    songs, raters = 20, 10
    shown, by_rater = [], [[] for _ in range(raters)]
    for _ in range(40):
        for rater in range(raters):
            pair = tuple(map(int, rng.choice(songs, 2, replace=False)))
            order = choose_sides(pair, side_balance(shown, songs), side_balance(by_rater[rater], songs), rng)
            assert sorted(order) == sorted(pair)
            shown.append(order)
            by_rater[rater].append(order)
    assert side_balance(shown, songs).sum() == 0
    assert np.abs(side_balance(shown, songs)).max() <= 6  # by chance 6.3 is the standard deviation
    assert max(np.abs(side_balance(rows, songs)).max() for rows in by_rater) <= 3


def test_a_large_study_is_answered_within_a_request():
    """500 songs and 5,000 votes: with a posterior at hand about 10 ms, with a new fit about 100 ms, on one core."""
    rng = np.random.default_rng(0)
    pairs = all_pairs(500)
    answers = [(int(a), int(b), 1.0) for a, b in rng.choice(pairs, 5000)]
    posterior = fit_utilities(500, answers, 1.5)
    start = time.process_time()
    for _ in range(5):
        posterior = posterior.after(answers[0])
        next_pair(pairs, answers, (), rng, PairChoice(), posterior=posterior)
    assert (time.process_time() - start) / 5 < 0.2
