"""A knob that follows ratings: closed forms of the posterior, and listeners whose favourite value is known."""

import numpy as np
import pytest

from diffdpo.preferences.knob_policy import KnobPolicy, knob_posterior


def test_without_ratings_nothing_is_known():
    policy = KnobPolicy(deviation=2.0, points=9)
    posterior = knob_posterior(policy, 0.0, 4.0, [], [])
    assert posterior.mean == pytest.approx(np.zeros(9))
    assert np.diag(posterior.covariance) == pytest.approx(np.full(9, 4.0))
    low, high = posterior.interval()
    assert low == pytest.approx(0.0)
    assert high == pytest.approx(4.0)


def test_the_posterior_at_a_rated_value_is_that_of_two_normal_laws():
    policy = KnobPolicy(deviation=1.5, noise=0.5, memory=np.inf, points=5)
    posterior = knob_posterior(policy, 0.0, 1.0, [0.25, 0.25], [1.0, 0.4])
    precision = 1 / 1.5**2 + 2 / 0.5**2
    assert posterior.mean[1] == pytest.approx((1.0 + 0.4) / 0.5**2 / precision, abs=1e-6)
    assert posterior.covariance[1, 1] == pytest.approx(1 / precision, abs=1e-6)


def test_an_older_rating_counts_less_by_the_memory():
    policy = KnobPolicy(noise=0.5, memory=1.0, points=5)
    posterior = knob_posterior(policy, 0.0, 1.0, [0.5, 0.5], [-1.0, 1.0])
    weights = np.exp([-1.0, 0.0]) / 0.5**2
    assert posterior.mean[2] == pytest.approx(weights @ [-1.0, 1.0] / (1 + weights.sum()), abs=1e-6)


def simulate(policy: KnobPolicy, favourites: list[float], rounds: int, seed: int) -> np.ndarray:
    """The chosen values, for a listener whose favourite changes in the middle if there are two."""
    rng, values, ratings = np.random.default_rng(seed), [], []
    for number in range(rounds):
        favourite = favourites[number * len(favourites) // rounds]
        value = knob_posterior(policy, 0.0, 1.0, values, ratings).choose(rng)
        values.append(value)
        ratings.append(float(np.clip(1 - 8 * (value - favourite) ** 2 + 0.3 * rng.standard_normal(), -1, 1)))
    return np.array(values)


def test_the_knob_comes_to_the_favourite_and_follows_it():
    last = np.array([simulate(KnobPolicy(), [0.8], 30, seed)[-10:] for seed in range(10)])
    assert abs(last.mean() - 0.8) < 0.05
    assert np.abs(last - 0.8).mean() < 0.15
    followed = np.array([simulate(KnobPolicy(memory=10.0), [0.8, 0.2], 80, seed)[-10:] for seed in range(10)])
    assert abs(followed.mean() - 0.2) < 0.1


@pytest.mark.parametrize(("name", "value"), [("points", 1), ("length", 0), ("noise", -1), ("memory", 0)])
def test_the_policy_is_checked(name, value):
    with pytest.raises(ValueError, match=f"policy.{name}"):
        KnobPolicy(**{name: value})
