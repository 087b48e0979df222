"""Coverage: how often a 95 % interval holds the truth, by law of the effects and number of prompts.

Rows of the table of docs/reference/coverage.md, which `make soak` writes.
"""

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri, stdtrit

from diffdpo.evaluation.best_of_n import GainCurve, equivalent_n
from diffdpo.statistics import estimate_mean, paired_effect
from diffdpo.statistics_power import smallest_effect
from diffdpo.statistics_ratios import ratio_p_value

SIMULATIONS = 2000
PROMPTS = (8, 12, 24, 48)
LAWS = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "exponential, skewness 2": (lambda rng, n: rng.exponential(size=n), 1.0),
    "lognormal, skewness 1.8": (lambda rng, n: rng.lognormal(0, 0.5, n), math.exp(0.125)),
    "Student's t, 3 degrees": (lambda rng, n: rng.standard_t(3, n), 0.0),
    "lognormal, skewness 6.2": (lambda rng, n: rng.lognormal(0, 1, n), math.exp(0.5)),
}
"""A sample of effects, and their mean."""
EXTREME = "lognormal, skewness 6.2"
"""No interval here holds for it; its coverage is shown."""


def names(count):
    return [f"p{k:02d}" for k in range(count)]


def alternatives(values, estimate):
    """The 95 % intervals that were not chosen, by name, from the same draws."""
    mean, error, means = estimate.mean, estimate.error, estimate.mean + estimate.deviations
    usable = estimate.errors > 1e-6 * error
    low, high = np.quantile(estimate.deviations[usable] / estimate.errors[usable], [0.025, 0.975])
    t = stdtrit(len(values) - 1, 0.975)
    bias = ndtri(np.clip((means < mean).mean(), 1e-4, 1 - 1e-4))
    skew = ((values - mean) ** 3).sum() / (6 * ((values - mean) ** 2).sum() ** 1.5)
    normal = bias + ndtri(np.array([0.025, 0.975]))
    return {
        "Student's t": (mean - t * error, mean + t * error),
        "studentised bootstrap": (mean - high * error, mean - low * error),
        "BCa": tuple(np.quantile(means, ndtr(bias + normal / (1 - skew * normal)))),
        "percentile bootstrap": tuple(np.quantile(means, [0.025, 0.975])),
    }


@pytest.mark.parametrize("count", PROMPTS)
@pytest.mark.parametrize("law", LAWS)
def test_the_interval_of_a_mean_holds_it(law, count, record_property):
    draw, mean = LAWS[law]
    rng, hits, widths = np.random.default_rng(0), {}, {}
    for _ in range(SIMULATIONS):
        values = draw(rng, count)
        estimate = estimate_mean(values, names(count))
        interval = estimate.interval()
        intervals = {"ours": (interval.low, interval.high)} | alternatives(values, estimate)
        for name, (low, high) in intervals.items():
            hits[name] = hits.get(name, 0) + (low <= mean <= high)
            widths.setdefault(name, []).append(high - low)
    shares = {name: hit / SIMULATIONS for name, hit in hits.items()}
    wider = np.median(widths["ours"]) / np.median(widths["Student's t"])
    record_property("coverage", [law, count, *shares.values(), wider])
    assert law == EXTREME or 0.93 <= shares["ours"] <= 0.97
    assert shares["ours"] >= 0.9


@pytest.mark.parametrize("count", PROMPTS)
def test_the_interval_of_an_effect_on_two_songs_a_prompt_holds_it(count):
    """Paired songs, whose differences are alike within prompts, and skewed between them."""
    rng, hits = np.random.default_rng(1), 0
    clusters = [name for name in names(count) for _ in range(2)]
    for _ in range(SIMULATIONS):
        change = np.repeat(rng.exponential(0.3, count), 2) + rng.normal(0, 0.2, 2 * count)
        base = rng.normal(size=2 * count)
        effect = paired_effect(base, base + change, clusters)
        hits += effect.low <= 0.3 <= effect.high
    assert 0.93 <= hits / SIMULATIONS <= 0.97


@pytest.mark.parametrize("count", PROMPTS)
@pytest.mark.parametrize("law", ["normal", "Student's t, 5 degrees"])
def test_the_interval_of_a_spread_holds_it(law, count, record_property):
    """Variances of two songs a prompt, correlated between the models; the interval is wider than it says."""
    rng, hits = np.random.default_rng(2), 0
    noise = rng.normal if law == "normal" else lambda size: rng.standard_t(5, size)
    for _ in range(SIMULATIONS):
        base, extra = noise(size=(2, count, 2))
        scale = np.exp(0.3 * rng.normal(size=(count, 1)))
        variances = [
            (scale * songs).var(1, ddof=1) for songs in (base, 0.9 * (0.7 * base + 0.51**0.5 * extra))
        ]
        hits += ratio_p_value(variances[1], variances[0], names(count), 0.81) >= 0.05
    record_property("spread", [f"spread within prompts, {law}", count, hits / SIMULATIONS])
    assert 0.93 <= hits / SIMULATIONS <= 0.99


@pytest.mark.parametrize("count", PROMPTS)
def test_the_interval_of_an_equivalent_n_holds_it(count, record_property):
    """Models that gain what best-of-3 gains, on other prompts than the candidates'."""
    rng, hits = np.random.default_rng(3), 0
    truth = np.array([0, 0.3, 0.45, 0.55, 0.6])
    for _ in range(SIMULATIONS):
        curve = GainCurve(tuple(names(count)), truth + rng.normal(0, 0.4, (count, 1)) * (truth > 0))
        change = truth[2] + rng.normal(0, 0.4, count)
        interval = equivalent_n(curve, change, [f"e{k}" for k in range(count)]).interval
        hits += interval.low <= 3 <= interval.high
    record_property("spread", ["N-equivalent, other prompts", count, hits / SIMULATIONS])
    assert 0.93 <= hits / SIMULATIONS <= 0.99


@pytest.mark.parametrize("count", PROMPTS)
@pytest.mark.parametrize("law", [law for law in LAWS if law != EXTREME])
def test_shuffled_labels_give_no_effect(law, count):
    """Random signs, whatever the law: no more than one interval of twenty leaves out 0."""
    draw, _ = LAWS[law]
    rng, alarms = np.random.default_rng(4), 0
    for _ in range(SIMULATIONS):
        differences = draw(rng, count) * rng.choice([-1.0, 1.0], count)
        alarms += paired_effect(np.zeros(count), differences, names(count)).direction != "unclear"
    assert alarms / SIMULATIONS <= 0.05 + 3 * (0.05 * 0.95 / SIMULATIONS) ** 0.5


@pytest.mark.parametrize("count", PROMPTS)
def test_the_smallest_effect_is_shown_in_four_cases_of_five(count):
    rng, effect, calls = np.random.default_rng(5), smallest_effect(1.0, count), 0
    for _ in range(SIMULATIONS):
        values = rng.normal(effect, 1, count)
        calls += paired_effect(np.zeros(count), values, names(count)).direction == "better"
    assert calls / SIMULATIONS == pytest.approx(0.8, abs=0.03)
