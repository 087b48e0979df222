"""Statistics of validity against models whose reliabilities and correlations are known."""

import math

import numpy as np
import pytest

from diffdpo.evaluation.validity import (
    Judgement,
    disattenuate,
    half_reliability,
    judge_axis,
    ladder_effect,
    prompt_residuals,
    spearman_brown,
    texture_residuals,
    trait_composite,
    transfer_gains,
    within_correlation,
)
from diffdpo.statistics import Effect, Interval

PROMPTS = [f"p{number:02d}" for number in range(60) for _ in range(20)]


@pytest.fixture(scope="module")
def normal():
    """Standard normal columns, with another mean for each prompt."""
    rng = np.random.default_rng(5)

    def draw(count=1, between=3.0):
        shift = np.repeat(between * rng.standard_normal((60, count)), 20, axis=0)
        return shift + rng.standard_normal((len(PROMPTS), count)), shift

    return draw


def test_residuals_have_no_mean_in_any_prompt():
    values = np.array([1.0, 3.0, 10.0, 20.0])
    assert prompt_residuals(values, ["a", "a", "b", "b"]).tolist() == [-1, 1, -5, 5]


def test_a_correlation_within_prompts_ignores_their_means():
    """By hand: within each prompt y falls where x rises, between prompts both rise."""
    x = np.array([0.0, 1, 2, 10, 11, 12, 20, 21, 22])
    y = np.array([2.0, 1, 0, 12, 11, 10, 22, 21, 20])
    prompts = list("aaabbbccc")
    assert within_correlation(x, y, prompts) == Interval(-1.0, -1.0, -1.0)
    assert np.corrcoef(x, y)[0, 1] > 0.9


def test_the_correlation_is_that_of_the_residuals():
    """By hand: residuals (-1, 0, 1) and (-1, 1, 0) in one prompt, the same in all: 1 / 2."""
    x, y = np.tile([0.0, 1, 2], 4), np.tile([0.0, 2, 1], 4)
    interval = within_correlation(x, y, [name for name in "abcd" for _ in range(3)])
    assert interval.value == pytest.approx(0.5)
    assert interval.low == pytest.approx(0.5) == interval.high  # no prompt differs from another


@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.8])
def test_intervals_over_prompts_hold_the_true_correlation(rho):
    """Of 100 simulations of 12 prompts with 8 songs, 95 in expectation; below 88 is 1 in 500."""
    rng = np.random.default_rng(int(10 * rho) + 50)
    prompts = [f"p{number:02d}" for number in range(12) for _ in range(8)]
    hits, values = 0, []
    for _ in range(100):
        x, noise = rng.standard_normal((2, len(prompts)))
        interval = within_correlation(x, rho * x + math.sqrt(1 - rho**2) * noise, prompts)
        hits += interval.low <= rho <= interval.high
        values.append(interval.value)
    assert hits >= 88
    assert np.mean(values) == pytest.approx(rho, abs=0.03)


def test_a_common_cause_explains_a_correlation_away(normal):
    """x and y are the cause plus noise of its size: correlation 1/2; with the cause held constant 0."""
    (cause, _), (noise, _) = normal(), normal(2)
    x, y = cause[:, 0] + noise[:, 0], cause[:, 0] + noise[:, 1]
    raw = within_correlation(x, y, PROMPTS)
    partial = within_correlation(x, y, PROMPTS, cause)
    assert raw.low < 0.5 < raw.high
    assert raw.low > 0.4
    assert partial.low < 0 < partial.high
    assert abs(partial.value) < 0.08


def test_a_partial_correlation_is_that_of_three_correlations(normal):
    """(r_xy - r_xc r_yc) / sqrt((1 - r_xc²) (1 - r_yc²)), for one covariate."""
    columns, _ = normal(3)
    x = columns[:, 0] + columns[:, 2]
    y = 0.5 * columns[:, 1] - columns[:, 2] + 0.3 * columns[:, 0]
    c = columns[:, 2:]
    xy, xc, yc = (within_correlation(a, b, PROMPTS).value for a, b in ((x, y), (x, c[:, 0]), (y, c[:, 0])))
    expected = (xy - xc * yc) / math.sqrt((1 - xc**2) * (1 - yc**2))
    assert within_correlation(x, y, PROMPTS, c).value == pytest.approx(expected)


def test_texture_residuals_do_not_correlate_with_the_covariates(normal):
    columns, _ = normal(3)
    covariates = np.column_stack([columns[:, 1:], np.ones(len(PROMPTS))])  # a constant one is no covariate
    residuals = texture_residuals(columns[:, 0] + 2 * columns[:, 1], covariates, PROMPTS)
    assert prompt_residuals(covariates, PROMPTS).T @ residuals == pytest.approx(np.zeros(3), abs=1e-8)


def test_the_reliability_of_a_factor_model(normal):
    """A half is signal + noise of variance 2: halves correlate 1/3; the whole, of noise 1, is reliable to 1/2."""
    (signal, shift), (noise, noise_shift) = normal(), normal(2)
    noise = math.sqrt(2) * (noise - noise_shift)
    reliability = half_reliability((signal[:, 0] + noise[:, 0], signal[:, 0] + noise[:, 1]), PROMPTS)
    assert reliability.low < 0.5 < reliability.high
    assert reliability.high - reliability.low < 0.2
    whole = signal[:, 0] + noise.mean(1)
    share = np.var(signal - shift) / np.var(whole - shift[:, 0])
    assert reliability.value == pytest.approx(share, abs=0.08)


def test_scores_that_are_the_same_for_all_halves_have_no_reliability():
    constant = np.full(len(PROMPTS), -7.0)
    assert np.isnan(half_reliability((constant, constant), PROMPTS).value)


def test_spearman_brown_by_hand():
    assert spearman_brown(Interval(0.5, 0.0, 1.0)) == Interval(2 / 3, 0.0, 1.0)
    assert spearman_brown(Interval(-0.2, -1.0, 0.2)) == Interval(-0.5, -1.0, 2 * 0.2 / 1.2)


def test_attenuation_is_taken_back(normal):
    """Two methods of reliability 1/2 and 4/5 whose traits correlate 0.6: 0.6 sqrt(0.4) is measured."""
    (traits, shift), (noise, noise_shift) = normal(2), normal(2)
    noise -= noise_shift
    first = traits[:, 0] + noise[:, 0]
    second = shift[:, 1] + 0.6 * (traits - shift)[:, 0] + 0.8 * (traits - shift)[:, 1] + 0.5 * noise[:, 1]
    measured = within_correlation(first, second, PROMPTS)
    assert measured.low < 0.6 * math.sqrt(0.4) < measured.high
    assert disattenuate(measured.value, 0.5, 0.8) == pytest.approx(0.6, abs=0.08)
    assert disattenuate(0.3, 0.36, 1.0) == pytest.approx(0.5)
    assert math.isnan(disattenuate(0.3, 0.0, 1.0))


@pytest.mark.parametrize(
    ("x", "prompts"),
    [
        ([1.0, 1, 1, 1, 1, 1, 1, 1], "aaaabbbb"),  # nothing varies
        ([1.0, 1, 1, 1, 2, 2, 2, 2], "aaaabbbb"),  # nothing within a prompt
        ([1.0, 2, 3, 4, 5, 6, 7, 8], "abcdefgh"),  # one song a prompt
        ([1.0, 2, 3, 4, 5, 6, 7, 8], "aaaaaaaa"),  # one prompt
        ([1.0, math.nan, 3, math.nan, 5, 6, math.nan, 8], "aabbbbcc"),  # one prompt is left
    ],
)
def test_nothing_is_known_where_nothing_varies(x, prompts):
    y = np.array([1.0, -1, 2, -2, 1, 4, 3, -3])
    assert math.isnan(within_correlation(np.array(x), y, list(prompts)).value)


def test_songs_without_a_number_are_left_out():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40))
    prompts = [f"p{number // 5}" for number in range(40)]
    holes = x.copy()
    holes[[3, 17]] = math.nan
    rest = np.isfinite(holes)
    names = [prompt for prompt, is_there in zip(prompts, rest, strict=True) if is_there]
    assert within_correlation(holes, y, prompts) == within_correlation(x[rest], y[rest], names)


def test_more_covariates_than_songs_prove_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 12))
    prompts = [f"p{number // 3}" for number in range(12)]
    assert math.isnan(within_correlation(x, y, prompts, rng.standard_normal((12, 7))).value)


def test_a_composite_is_the_mean_of_standardised_axes():
    columns = {"a": np.array([0.0, 2.0]), "b": np.array([30.0, 10.0]), "c": np.array([5.0, 5.0])}
    assert trait_composite(columns, ["a"]).tolist() == [-1, 1]
    assert trait_composite(columns, ["a", "b"]).tolist() == [0, 0]
    assert trait_composite(columns, ["a", "c"]).tolist() == [-0.5, 0.5]


def test_the_best_of_n_by_an_axis_gains_the_order_statistic_on_it(normal):
    """Of normal songs: 0.564, 1.029 and 1.539 deviations for 2, 4 and 10; nothing on an independent axis."""
    columns, _ = normal(2, between=0.0)
    targets = {"self": columns[:, 0], "other": columns[:, 1]}
    for n, expected in ((2, 0.5642), (4, 1.0294), (10, 1.5388)):
        gains = transfer_gains(columns[:, 0], targets, PROMPTS, n)
        assert gains["self"].low < expected < gains["self"].high
        assert gains["self"].value == pytest.approx(expected, abs=0.08)
        assert gains["other"].low < 0 < gains["other"].high


def test_a_transfer_is_the_correlation_times_the_gain(normal):
    columns, _ = normal(2, between=0.0)
    target = 0.6 * columns[:, 0] + 0.8 * columns[:, 1]
    gains = transfer_gains(columns[:, 0], {"target": target}, PROMPTS, 4)
    assert gains["target"].low < 0.6 * 1.0294 < gains["target"].high


def test_a_transfer_needs_values_and_songs():
    values = np.arange(8.0)
    prompts = list("aaaabbbb")
    gains = transfer_gains(
        values, {"flat": np.ones(8), "hole": np.where(values == 1, np.nan, values)}, prompts, 2
    )
    assert all(math.isnan(gain.value) for gain in gains.values())
    assert math.isnan(transfer_gains(values, {"x": values}, prompts, 5)["x"].value)
    best = transfer_gains(values, {"x": values}, prompts, 4)[
        "x"
    ].value  # the best of all four: 1.5 above the mean
    assert best == pytest.approx(1.5 / values.std(ddof=1))


def test_worse_songs_are_paired_by_noise_or_by_prompt():
    candidates, prompts = np.array([1.0, 3.0, 5.0, 7.0]), ["a", "a", "b", "b"]
    deviation = candidates.std(ddof=1)
    paired = ladder_effect(candidates, np.array([0.5, 4.5]), prompts, ["a", "b"], [0, 2])
    assert paired.mean == pytest.approx(0.5 / deviation)
    by_prompt = ladder_effect(candidates, np.array([0.0, 5.0]), prompts, ["a", "b"], [None, None])
    assert by_prompt.mean == pytest.approx(1.5 / deviation)
    assert by_prompt.clusters == 2
    absent = ladder_effect(candidates, np.array([0.0]), prompts, ["z"], [None])
    assert absent.count == 0


def effect(low, high):
    return Effect((low + high) / 2, low, high, 0.5, 0.0, 48, 16)


WORSE = {"2 steps": effect(-0.1, 0.3), "damage": effect(0.5, 0.9)}
ABOVE, ACROSS = Interval(0.4, 0.2, 0.6), Interval(0.1, -0.1, 0.3)


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ((ABOVE, ABOVE, WORSE, 16), ()),
        ((ABOVE, ABOVE, WORSE, 7), ("7 prompts, 8 are needed",)),
        ((None, None, WORSE, 16), ("nothing independent measures its trait",)),
        ((ACROSS, ABOVE, WORSE, 16), ("it does not agree with its trait",)),
        ((ABOVE, ACROSS, WORSE, 16), ("with texture held constant it does not agree with its trait",)),
        ((ABOVE, None, WORSE, 16), ("with texture held constant it does not agree with its trait",)),
        ((ABOVE, ABOVE, {}, 16), ("no worse songs were scored",)),
        ((ABOVE, ABOVE, {**WORSE, "guidance 1": effect(-0.9, -0.1)}, 16), ("guidance 1 scores higher",)),
        (
            (ACROSS, ACROSS, {"guidance 1": effect(-0.9, -0.1)}, 16),
            ("it does not agree with its trait", "guidance 1 scores higher"),
        ),
    ],
)
def test_an_axis_is_valid_by_the_rule_alone(arguments, reasons):
    judgement = judge_axis(*arguments)
    assert judgement == Judgement(not reasons, reasons)
    assert judgement.text == ("valid" if not reasons else f"not shown: {'; '.join(reasons)}")
