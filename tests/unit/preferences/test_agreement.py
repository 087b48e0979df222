"""Agreement of listeners: Krippendorff's formula, Wilson's intervals from the literature, exact tests."""

import math

import numpy as np
import pytest

from diffdpo.preferences.agreement import count_matches, krippendorff_alpha, side_preference, wilson_share


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(66, 101, 0.557, 0.739), (198, 303, 0.598, 0.705), (75, 100, 0.657, 0.825)],
)
def test_intervals_of_shares_are_those_of_published_studies(successes, count, low, high):
    share = wilson_share(successes, count)
    assert (share.low, share.high) == pytest.approx((low, high), abs=6e-4)
    assert share.value == successes / count


def test_shares_of_nothing_say_nothing_and_ends_stay_in_range():
    assert math.isnan(wilson_share(0, 0).value)
    assert (wilson_share(0, 0).low, wilson_share(0, 0).high) == (0, 1)
    assert wilson_share(0, 5).low == 0
    assert wilson_share(5, 5).high == pytest.approx(1)


def test_alpha_is_one_for_agreement_zero_for_chance_and_negative_for_the_reverse():
    units = np.repeat(np.arange(400), 2)
    rng = np.random.default_rng(0)
    agreed = np.repeat(rng.integers(-1, 2, 400), 2)
    assert krippendorff_alpha(units, agreed, "nominal") == pytest.approx(1)
    assert krippendorff_alpha(units, rng.integers(-1, 2, 800), "nominal") == pytest.approx(0, abs=0.1)
    assert krippendorff_alpha(units, np.tile([1, -1], 400), "ordinal") == pytest.approx(-1, abs=0.01)


def test_alpha_is_krippendorffs_formula():
    """Two raters, nominal: alpha = 1 - (n - 1) · disagreements / (products of the counts of unlike values)."""
    first, second = np.array([1, 1, 0, -1, 1, 0]), np.array([1, 0, 0, -1, -1, 0])
    units = np.tile(np.arange(6), 2)
    values = np.concatenate([first, second])
    counts = [int((values == value).sum()) for value in (-1, 0, 1)]
    unlike = sum(a * b for i, a in enumerate(counts) for j, b in enumerate(counts) if i != j)
    expected = 1 - 11 * 2 * int((first != second).sum()) / unlike
    assert krippendorff_alpha(units, values, "nominal") == pytest.approx(expected)
    assert krippendorff_alpha(units[::-1], values[::-1], "nominal") == pytest.approx(expected)


def test_a_tie_is_nearer_than_the_reverse_on_the_ordinal_scale():
    units = np.repeat(np.arange(100), 2)
    base = np.random.default_rng(0).choice([-1, 1], 100)
    near = np.stack([base, np.where(np.arange(100) < 30, 0, base)], 1).ravel()
    far = np.stack([base, np.where(np.arange(100) < 30, -base, base)], 1).ravel()
    assert krippendorff_alpha(units, near, "ordinal") > krippendorff_alpha(units, far, "ordinal") + 0.2


def test_what_cannot_be_compared_has_no_alpha():
    assert math.isnan(krippendorff_alpha(np.arange(5), np.ones(5, int), "nominal"))
    assert math.isnan(krippendorff_alpha(np.zeros(5, int), np.ones(5, int), "nominal"))


def test_a_preference_for_a_side_is_the_exact_binomial_test():
    """Of 10 votes 9 for the first: p = 2 (1 + 10) / 1024, z = 4 / sqrt(2.5)."""
    test = side_preference(9, 1)
    assert test.p_value == pytest.approx(22 / 1024)
    assert test.z == pytest.approx(4 / math.sqrt(2.5))
    assert side_preference(5, 5).p_value == 1
    assert side_preference(0, 0).p_value == 1


def test_repeated_answers_that_match():
    assert count_matches([1, 0, -1, 1], [1, 0, 1, 1]).successes == 3
