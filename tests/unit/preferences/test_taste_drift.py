"""Drift of listeners: each test on streams whose change is known, blind tests beside, levels, and promotion."""

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from diffdpo.preferences.bradley_terry import log_loss
from diffdpo.preferences.loss_alarm import LossAlarm, calibrate_alarm
from diffdpo.preferences.promotion import compare_models
from diffdpo.preferences.taste_drift import (
    Alarm,
    DriftConfig,
    DriftMonitor,
    agreement_share,
    next_level,
)
from diffdpo.preferences.window_tests import (
    MeanDiscrepancy,
    bartlett_factor,
    chi_square_p_value,
    likelihood_ratio,
    population_stability,
)
from tools.bench.taste_world import BLIND, DRIFT, make_stream, run_tests

pytestmark = pytest.mark.slow


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_alarm_rings_when_the_excess_has_summed_up():
    """Losses rise from 0.5 by 0.3 at vote 100; the mean follows slowly, so 11 votes sum to about 11 · 0.28 = 3."""
    alarm = LossAlarm(tolerance=0.02, threshold=3.0)
    losses = np.concatenate([np.full(100, 0.5), np.full(100, 0.8)])
    place = alarm.first(np.full(100_000, 0.5), losses)
    assert place == 100 + int(np.ceil(3.0 / 0.28)) - 1
    assert LossAlarm(tolerance=0.31, threshold=3.0).first(np.full(100_000, 0.5), losses) is None


def test_the_threshold_rings_as_often_as_it_should():
    """Reference and streams from one law: with 10 % allowed, and a tenth on top, at most 10 % ring."""
    rings = []
    for seed in range(30):
        losses = rng(seed).gamma(1.0, 0.5, 2500)
        alarm = calibrate_alarm(losses[:500], horizon=2000, false_alarms=0.1, rng=rng(1000 + seed))
        rings.append(alarm.first(losses[:500], losses[500:]) is not None)
    assert np.mean(rings) <= 0.15


def test_the_likelihood_ratio_is_chi_square_without_a_change():
    values = []
    for seed in range(40):
        rows = rng(seed).standard_normal((600, 3))
        targets = (rng(seed + 500).random(600) < 1 / (1 + np.exp(-rows @ [1.0, 0.5, 0.0]))).astype(float)
        values.append(likelihood_ratio(rows[:400], targets[:400], rows[400:], targets[400:]))
    assert kstest(values, chi2(3).cdf).pvalue > 0.01
    assert bartlett_factor(rows, targets, 200, rng(), draws=40) == pytest.approx(1.05, abs=0.3)
    assert chi_square_p_value(chi2(3).isf(0.01), 3, 1.0) == pytest.approx(0.01)


def test_the_discrepancy_is_uniform_without_a_change_and_small_with_one():
    p_values = []
    for seed in range(40):
        rows = rng(seed).standard_normal((900, 4)) * [1, 2, 0.5, 1]
        test = MeanDiscrepancy.of(rows[:700], rng(seed))
        p_values.append(test.p_value(rows[700:]))
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert test.p_value(rows[700:] + 0.6) < 1e-6
    assert MeanDiscrepancy.of(np.zeros((50, 2)), rng()).p_value(np.zeros((10, 2))) == 1


def test_population_stability_is_zero_for_equal_shares_and_grows_with_a_shift():
    values = rng().normal(size=1000)
    assert population_stability(values, values) == pytest.approx(0, abs=1e-3)
    assert population_stability(values, values + 0.7) > 0.2


def test_a_turned_taste_is_seen_and_score_distributions_are_blind():
    """2 seeds of 3,500 votes, the taste turned by 60 degrees at vote 2,000; tools/bench_drift.py has more."""
    cfg = DriftConfig(horizon=2500)
    results = [run_tests(make_stream("sudden", 3500, seed), cfg).first for seed in range(2)]
    delays = [result["any alarm"] - DRIFT for result in results]
    assert min(delays) > 0
    assert np.median(delays) <= 400
    assert all(result[test] is None for result in results for test in BLIND)


def test_other_songs_are_seen_by_embeddings_alone():
    result = run_tests(make_stream("songs", 3000, 3), DriftConfig(horizon=2000)).first
    assert result["embeddings"] == DRIFT + 249
    assert result["loss"] is None


def test_nothing_rings_when_nothing_changes():
    """One seed; soak has 200."""
    result = run_tests(make_stream("none", 3500, 100), DriftConfig(horizon=2500)).first
    assert result["any alarm"] is None


def test_levels_follow_from_the_votes_after_an_alarm():
    cfg = DriftConfig(reference=1000, window=250, horizon=2000)
    stream = make_stream("sudden", 3500, 0)
    monitor = DriftMonitor.of(stream.part(0, 1000), cfg)

    def level(stop, alarms, promoted=False):
        return next_level(monitor, stream.part(1000, stop), alarms, is_promoted=promoted)

    alarm = Alarm("loss", 2100, 60.0, 50.0)
    assert level(2500, []) == "none"
    assert level(2150, [alarm]) == "calibrate"  # too few votes since the alarm
    assert level(3500, [alarm]) == "retrain"
    assert level(3500, [alarm], promoted=True) == "realign"
    early = Alarm("embeddings", 1200, 1e-9, 1e-4)
    assert level(2000, [early]) == "calibrate"  # the model is as good as before


def test_a_better_model_is_promoted_and_an_equal_one_is_not():
    stream = make_stream("none", 1500, 0)
    raters = [f"r{i % 20}" for i in range(1500)]
    noise = rng(1).normal(0, 2, 1500)
    result = compare_models(stream.margins + noise, stream.margins, stream.targets, raters)
    assert result.is_promoted
    assert 0 < result.low < result.gain < result.high
    expected = (
        log_loss(stream.margins + noise, stream.targets) - log_loss(stream.margins, stream.targets)
    ).mean()
    assert result.gain == pytest.approx(expected)
    assert result.better > result.worse
    assert not compare_models(stream.margins, stream.margins + noise, stream.targets, raters).is_promoted
    same = compare_models(stream.margins, stream.margins, stream.targets, raters)
    assert (same.is_promoted, same.p_value, same.better) == (False, 1.0, 0)
    few = compare_models((stream.margins + noise)[:99], stream.margins[:99], stream.targets[:99], raters[:99])
    assert not few.is_promoted
    assert not compare_models(np.zeros(0), np.zeros(0), np.zeros(0), []).is_promoted


def test_agreement_counts_ties_half():
    assert agreement_share(np.array([1.0, 1.0, -2.0, 0.0]), np.array([1.0, 0.5, 1.0, 1.0])) == 0.5


@pytest.mark.parametrize("values", [{"window": 10}, {"false_alarms": 0.0}, {"tolerance": -1.0}])
def test_configurations_that_cannot_be(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        DriftConfig(**values)
