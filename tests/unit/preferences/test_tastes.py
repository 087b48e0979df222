"""Tastes of single listeners, on votes of simulated raters whose bases are known."""

import numpy as np
import pytest

from diffdpo.preferences.bradley_terry import fit_weights, log_loss, win_probability
from diffdpo.preferences.pair_choice import PairChoice
from diffdpo.preferences.tastes import TasteFit, Tastes, fit_tastes, read_tastes

FEATURES, TRAINING_RATERS, VOTES = 12, 60, 60


def simulate_taste(rng, common, directions):
    return common + rng.normal(0, 1.0, len(directions)) @ directions


def simulate_votes(rng, taste, count):
    differences = rng.standard_normal((count, FEATURES))
    return differences, (rng.random(count) < win_probability(differences @ taste)).astype(float)


@pytest.fixture(scope="module")
def world():
    """A common taste, two directions in which raters differ, and pooled votes of 60 raters."""
    rng = np.random.default_rng(0)
    base = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0].T
    common, directions = 1.2 * base[0], base[1:3]
    votes = [
        simulate_votes(rng, simulate_taste(rng, common, directions), VOTES) for _ in range(TRAINING_RATERS)
    ]
    differences, targets = (np.concatenate(parts) for parts in zip(*votes, strict=True))
    return common, directions, differences, np.repeat(np.arange(TRAINING_RATERS), VOTES), targets


@pytest.fixture(scope="module")
def tastes(world):
    _, _, differences, rater, targets = world
    return fit_tastes(differences, rater, targets, TasteFit(bases=4, rounds=6))


def test_a_listener_without_votes_has_the_pooled_model_exactly(world, tastes):
    _, _, differences, _, targets = world
    pooled = fit_weights(differences, l2=5.0, targets=targets)
    assert np.array_equal(tastes.pooled, pooled)
    listener = tastes.listener(np.zeros((0, FEATURES)), np.zeros(0))
    assert np.array_equal(listener.feature_weights, pooled)
    assert listener.covariance == pytest.approx(tastes.covariance, abs=1e-4)


def test_the_bases_span_the_directions_in_which_raters_differ(world, tastes):
    common, directions, *_ = world
    base = np.linalg.qr(tastes.bases.T)[0]
    for direction in (*directions, common / np.linalg.norm(common)):
        assert np.linalg.norm(base.T @ direction) > 0.93


def test_twenty_votes_of_thirty_listeners_beat_the_pooled_model(world, tastes):
    """Expected log-loss under the known probabilities, on pairs that nobody voted on; Student's t over raters."""
    common, directions, *_ = world
    rng, gains = np.random.default_rng(1), []
    for _ in range(30):
        taste = simulate_taste(rng, common, directions)
        listener = tastes.listener(*simulate_votes(rng, taste, 20))
        pairs = rng.standard_normal((400, FEATURES))
        truth = win_probability(pairs @ taste)
        gains.append(
            (log_loss(pairs @ tastes.pooled, truth) - log_loss(listener.margin(pairs), truth)).mean()
        )
    assert np.mean(gains) - 2.045 * np.std(gains, ddof=1) / 30**0.5 > 0


def test_many_votes_find_the_listener_and_shrink_the_covariance(world, tastes):
    common, directions, *_ = world
    rng = np.random.default_rng(2)
    taste = simulate_taste(rng, common, directions)
    few, many = (tastes.listener(*simulate_votes(rng, taste, count)) for count in (5, 4000))
    cosine = many.feature_weights @ taste / np.linalg.norm(many.feature_weights) / np.linalg.norm(taste)
    assert cosine > 0.9
    assert (
        np.trace(many.covariance) < 0.2 * np.trace(few.covariance) < 0.2 * np.trace(tastes.covariance) * 1.01
    )


def test_one_base_and_one_vote_have_the_closed_form():
    """Weight w ~ N(1, 1), margin 2 w, one vote for the first: 2 σ(-2w) = w - 1 at the mode."""
    tastes = Tastes(bases=np.array([[2.0]]), mean=np.ones(1), covariance=np.eye(1))
    listener = tastes.listener(np.ones((1, 1)), np.ones(1))
    (weight,) = listener.weights
    chance = 1 / (1 + np.exp(2 * weight))
    assert 2 * chance == pytest.approx(weight - 1, abs=1e-4)
    assert listener.covariance[0, 0] == pytest.approx(1 / (1 + 4 * chance * (1 - chance)), rel=1e-4)
    assert listener.variance(np.ones((1, 1)))[0] == pytest.approx(4 * listener.covariance[0, 0])


def test_the_next_pair_is_the_one_of_which_least_is_known():
    tastes = Tastes(bases=np.eye(3), mean=np.eye(3)[0], covariance=np.diag([0.01, 4.0, 0.5]))
    listener = tastes.listener(np.zeros((0, 3)), np.zeros(0))
    rng, cfg = np.random.default_rng(0), PairChoice(uniform_share=0.2, shortlist=1)
    draws = [listener.next_pair(np.eye(3), (), rng, cfg) for _ in range(400)]
    assert np.mean(np.array(draws) == 1) == pytest.approx(0.8 + 0.2 / 3, abs=0.06)
    assert listener.next_pair(np.eye(3), {1, 2}, rng, cfg) == 0
    with pytest.raises(ValueError, match="every pair"):
        listener.next_pair(np.eye(3), {0, 1, 2}, rng, cfg)


def test_tastes_are_arrays_and_back_and_anything_else_is_refused(tastes):
    copy = read_tastes(tastes.arrays())
    assert all(np.array_equal(copy.arrays()[key], tastes.arrays()[key]) for key in tastes.arrays())
    with pytest.raises(ValueError, match="do not fit"):
        read_tastes({**tastes.arrays(), "mean": np.ones(9)})
    with pytest.raises(KeyError):
        read_tastes({})


def test_raters_who_agree_leave_the_other_bases_without_weight():
    rng = np.random.default_rng(3)
    taste = rng.standard_normal(4)
    differences = rng.standard_normal((1200, 4))
    targets = (rng.random(1200) < win_probability(differences @ taste)).astype(float)
    tastes = fit_tastes(differences, np.arange(1200) % 20, targets, TasteFit(bases=3, rounds=20))
    pairs = rng.standard_normal((200, 4))
    listener = tastes.listener(np.zeros((0, 4)), np.zeros(0))
    assert np.median(listener.variance(pairs)) < 0.2 * np.median((pairs @ taste) ** 2) + 0.1
