"""Davidson's model: Bradley and Terry's without ties, closed forms, and the share of ties."""

import numpy as np
import pytest

from diffdpo.preferences.bradley_terry import fit_weights, log_loss
from diffdpo.preferences.ties import davidson_terms, fit_davidson, fit_nu, tie_probability

MARGINS = np.array([-900.0, -3.0, -0.1, 0.0, 0.4, 5.0, 800.0])


@pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 1.0])
def test_without_ties_the_loss_is_that_of_bradley_and_terry(target):
    targets = np.full(len(MARGINS), target)
    terms = davidson_terms(MARGINS, targets, 0.0)
    assert terms.loss == pytest.approx(log_loss(MARGINS, targets))
    assert np.isfinite(terms.slope).all()
    assert (terms.curvature >= 0).all()


@pytest.mark.parametrize("nu", [0.0, 0.5, 3.0])
def test_the_three_outcomes_have_davidsons_odds(nu):
    """exp(d / 2) : nu : exp(-d / 2); the loss of a tie leaves out the constant log nu."""
    margins = MARGINS[1:-1]
    total = np.exp(margins / 2) + nu + np.exp(-margins / 2)
    for target, weight in ((1.0, np.exp(margins / 2)), (0.0, np.exp(-margins / 2)), (0.5, np.ones(5))):
        terms = davidson_terms(margins, np.full(5, target), nu)
        assert terms.loss == pytest.approx(-np.log(weight / total))
    assert tie_probability(margins, nu) == pytest.approx(nu / total)


def test_slope_and_curvature_are_the_derivatives():
    targets, nu, step = np.array([1.0, 0.0, 0.5, 0.7, 1.0]), 0.8, 1e-5
    margins = MARGINS[1:-1]
    up, down = (davidson_terms(margins + sign * step, targets, nu) for sign in (1, -1))
    terms = davidson_terms(margins, targets, nu)
    assert (up.loss - down.loss) / (2 * step) == pytest.approx(terms.slope, abs=1e-8)
    assert (up.slope - down.slope) / (2 * step) == pytest.approx(terms.curvature, abs=1e-8)


def test_the_fit_without_ties_is_that_of_bradley_and_terry():
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((200, 4)), rng.random(200).round()
    counts = rng.integers(0, 3, 200).astype(float)
    assert fit_davidson(x, targets, counts, l2=2.0) == pytest.approx(
        fit_weights(x, l2=2.0, targets=targets, counts=counts), abs=1e-6
    )
    with pytest.raises(ValueError, match="l2"):
        fit_davidson(x, targets, counts, l2=0.0)


def test_weights_and_the_share_of_ties_are_recovered():
    rng = np.random.default_rng(1)
    taste, nu = np.array([1.0, -2.0]), 0.7
    x = rng.standard_normal((30_000, 2))
    ties = rng.random(len(x)) < tie_probability(x @ taste, nu)
    wins = rng.random(len(x)) < 1 / (1 + np.exp(-(x @ taste)))  # given that it is decided
    targets = np.where(ties, 0.5, wins)
    weights = fit_davidson(x, targets, np.ones(len(x)), l2=1e-3, nu=nu)
    assert weights == pytest.approx(taste, abs=0.06)
    assert fit_nu(x @ taste, ties, np.ones(len(x))) == pytest.approx(nu, rel=0.05)
    assert fit_nu(x @ taste, np.zeros(len(x), bool), np.ones(len(x))) == 0
