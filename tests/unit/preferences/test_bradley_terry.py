"""Bradley-Terry fits: closed forms, the gradient, simulated votes whose weights and probabilities are known."""

import numpy as np
import pytest

from diffdpo.preferences.bradley_terry import (
    TEMPERATURES,
    bootstrap_counts,
    calibrate_temperature,
    fit_weights,
    gradient,
    group_folds,
    log_loss,
    win_probability,
)


def votes(pairs: int, weights: np.ndarray, seed: int = 0, sharpness: float = 1.0):
    """Differences of features, and 1 or 0 drawn by the model with these weights."""
    rng = np.random.default_rng(seed)
    differences = rng.standard_normal((pairs, len(weights)))
    wins = rng.random(pairs) < win_probability(sharpness * differences @ weights)
    return differences, wins.astype(float)


@pytest.mark.parametrize("wins", [1, 3, 9])
def test_one_feature_has_the_logit_of_the_share_of_wins(wins):
    targets = np.repeat([1.0, 0.0], [wins, 10 - wins])
    (weight,) = fit_weights(np.ones((10, 1)), l2=1e-9, targets=targets)
    assert weight == pytest.approx(np.log(wins / (10 - wins)), abs=1e-6)


def test_strengths_of_players_solve_the_equations_of_bradley_and_terry():
    """At the maximum each player's wins are the wins that the model expects."""
    wins = np.array([[0, 7, 9], [3, 0, 6], [2, 5, 0]], float)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    differences = np.array([np.eye(3)[i] - np.eye(3)[j] for i, j in pairs])
    counts = np.array([wins[i, j] for i, j in pairs])
    strength = fit_weights(differences, l2=1e-9, counts=counts)
    probability = win_probability(strength[:, None] - strength)
    games = wins + wins.T
    assert (games * probability).sum(1) - games.diagonal() == pytest.approx(wins.sum(1), abs=1e-6)


def test_counts_and_shares_of_votes_stand_for_repeated_pairs():
    rng = np.random.default_rng(0)
    differences = rng.standard_normal((6, 3))
    wins = np.array([3, 0, 2, 4, 1, 2])
    rows = np.repeat(differences, 4, axis=0)
    outcomes = np.concatenate([[1.0] * count + [0.0] * (4 - count) for count in wins])
    repeated = fit_weights(rows, l2=1.0, targets=outcomes)
    shares = fit_weights(differences, l2=1.0, targets=wins / 4, counts=np.full(6, 4.0))
    assert shares == pytest.approx(repeated, abs=1e-8)


def test_ties_alone_give_no_weight():
    differences = np.random.default_rng(0).standard_normal((50, 4))
    assert fit_weights(differences, l2=1.0, targets=np.full(50, 0.5)) == pytest.approx(np.zeros(4), abs=1e-9)


def test_the_gradient_is_that_of_the_loss_and_zero_at_the_minimum():
    differences, targets = votes(200, np.array([1.0, -2.0, 0.5]))
    counts, l2 = np.random.default_rng(1).integers(0, 4, 200).astype(float), 2.0

    def loss(w):
        return counts @ log_loss(differences @ w, targets) + l2 / 2 * w @ w

    point, step = np.array([0.3, -0.1, 0.7]), 1e-6
    numeric = [(loss(point + step * unit) - loss(point - step * unit)) / (2 * step) for unit in np.eye(3)]
    assert gradient(point, differences, targets, counts, l2) == pytest.approx(numeric, rel=1e-5)
    best = fit_weights(differences, l2=l2, targets=targets, counts=counts)
    assert gradient(best, differences, targets, counts, l2) == pytest.approx(np.zeros(3), abs=1e-6)
    rng = np.random.default_rng(2)
    assert all(loss(best + rng.normal(0, 0.1, 3)) > loss(best) for _ in range(20))


def test_many_votes_recover_the_weights():
    weights = np.array([1.5, -1.0, 0.0, 0.5])
    differences, targets = votes(20_000, weights)
    assert fit_weights(differences, l2=1.0, targets=targets) == pytest.approx(weights, abs=0.08)


def test_pairs_that_a_plane_divides_have_a_minimum_only_with_a_penalty():
    differences = np.abs(np.random.default_rng(0).standard_normal((30, 2)))
    assert np.isfinite(fit_weights(1e3 * differences, l2=1e-3)).all()
    with pytest.raises(ValueError, match="l2"):
        fit_weights(differences, l2=0.0)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_a_temperature_restores_the_probabilities_of_margins(temperature):
    weights = np.array([2.0, 1.0])
    differences, targets = votes(20_000, weights)
    margins = temperature * differences @ weights
    result = calibrate_temperature(margins, targets)
    assert result == pytest.approx(temperature, rel=0.06)
    probability = win_probability(margins / result)
    for low in np.arange(0, 1, 0.2):
        inside = (probability >= low) & (probability < low + 0.2)
        assert targets[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.03)


def test_temperatures_stay_in_their_range():
    margins = np.linspace(1, 2, 20)
    assert calibrate_temperature(margins) == pytest.approx(TEMPERATURES[0], abs=0.2)
    assert calibrate_temperature(margins, np.tile([0.0, 1.0], 10)) > 2
    assert calibrate_temperature(-margins) == TEMPERATURES[1]


def test_margins_of_any_size_have_a_probability_without_a_warning():
    assert win_probability(np.array([-1e6, 0.0, 1e6])).tolist() == [0.0, 0.5, 1.0]
    assert log_loss(np.array([1e6, -1e6]), np.array([1.0, 0.0])).tolist() == [0.0, 0.0]


def test_folds_and_bootstraps_keep_groups_together():
    groups = np.array([*"aabbbccddddeffg"])
    fold = group_folds(groups, 3, seed=0)
    counts = bootstrap_counts(groups, np.random.default_rng(0))
    for name in set(groups):
        assert len(set(fold[groups == name])) == len(set(counts[groups == name])) == 1
    assert set(fold) == {0, 1, 2}
    sizes = [bootstrap_counts(np.arange(7), np.random.default_rng(seed)).sum() for seed in range(5)]
    assert sizes == [7.0] * 5
