"""Isotonic calibration against scipy's, the calibration error by hand, offsets of systems, slopes of listeners."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from diffdpo.preferences.calibration import (
    calibration_error,
    fit_isotonic,
    fit_offsets,
    fit_slopes,
    isotonic_probability,
    offset_margins,
)


def test_isotonic_regression_is_scipys_on_symmetric_data():
    rng = np.random.default_rng(0)
    margins = rng.standard_normal(300)
    targets = (rng.random(300) < 1 / (1 + np.exp(-3 * margins))).astype(float)
    knots = fit_isotonic(margins, targets, np.ones(300))
    x, y = np.concatenate([margins, -margins]), np.concatenate([targets, 1 - targets])
    order = np.argsort(x)
    blocks = np.unique(isotonic_regression(y[order]).x.round(9))
    assert np.unique(knots[1].round(9)) == pytest.approx(blocks)
    assert (np.diff(knots[0]) > 0).all()


def test_isotonic_probabilities_rise_and_mirror():
    knots = fit_isotonic(np.array([-2.0, 0.5, 1.0, 3.0]), np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))
    x = np.linspace(-5, 5, 101)
    values = isotonic_probability(x, knots)
    assert (np.diff(values) >= -1e-12).all()
    assert values + values[::-1] == pytest.approx(np.ones(101))


def test_the_calibration_error_is_the_mean_distance_over_bins():
    probabilities = np.array([0.9, 0.9, 0.1, 0.6])  # 0.1 counts as 0.9 for the other side
    targets = np.array([1.0, 0.0, 0.0, 1.0])
    assert calibration_error(probabilities, targets) == pytest.approx(
        (3 * abs(0.9 - 2 / 3) + abs(0.6 - 1)) / 4
    )
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0)))


def test_the_offset_of_an_overrated_system_is_found_by_a_hundred_anchors():
    """A newer system, overrated by 2, loses pairs that the frozen reward gives it."""
    rng = np.random.default_rng(2)
    first, second = np.array(["old", "new"])[rng.integers(0, 2, (2, 4000))].tolist()
    margins = rng.standard_normal(4000) + 2.0 * (np.array(first) == "new") - 2.0 * (np.array(second) == "new")
    truth = 1 / (1 + np.exp(-offset_margins(margins, {"new": 2.0}, first, second)))
    targets = (rng.random(4000) < truth).astype(float)
    offsets = fit_offsets(margins[:100], first[:100], second[:100], targets[:100], pinned_system="old")
    assert offsets["old"] == 0
    assert 0.8 < offsets["new"] < 3
    outside = slice(100, None)
    repaired = offset_margins(margins[outside], offsets, first[outside], second[outside])
    before, after = (
        ((values > 0) == (targets[outside] > 0.5)).mean() for values in (margins[outside], repaired)
    )
    assert after > before + 0.05


def test_a_strong_penalty_keeps_offsets_at_the_pinned_system():
    offsets = fit_offsets(np.zeros(9), ["x"] * 9, ["y"] * 9, np.ones(9), l2=1e6)
    assert offsets == pytest.approx({"x": 0.0, "y": 0.0}, abs=1e-4)
    assert fit_offsets(np.zeros(1), ["x"], ["x"], np.ones(1)) == {"x": 0.0}


def test_listeners_who_guess_have_slopes_near_0_and_opponents_negative_ones():
    rng = np.random.default_rng(3)
    margins = 2 * rng.standard_normal(900)
    raters = np.repeat(["sincere", "guesser", "opponent"], 300)
    probability = 1 / (1 + np.exp(-margins * np.repeat([1.0, 0.0, -1.0], 300)))
    slopes = fit_slopes(margins, (rng.random(900) < probability).astype(float), raters.tolist())
    assert slopes["sincere"] == pytest.approx(1, abs=0.35)
    assert abs(slopes["guesser"]) < 0.3
    assert slopes["opponent"] < -0.4
