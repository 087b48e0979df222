"""What rules are given: wrong thresholds and axes are refused, and all agree where the case is clear."""

import math

import numpy as np
import pytest
from support.candidates import apply, candidate, prompt

from diffdpo.errors import ConfigError
from diffdpo.mining import (
    RULES,
    BestVersusWorst,
    CrossPair,
    Pareto,
    PerAxis,
    RealVersusSample,
    StrongDomination,
)
from diffdpo.mining.scale import z_scores


@pytest.mark.parametrize(
    "rule", [rule() for name, rule in RULES.entries.items() if name not in ("union", "real_versus_sample")]
)
def test_all_rules_agree_on_a_clear_case(rule):
    """Twenty songs in one order on both axes, far apart: the best meets the worst."""
    ranked = [candidate("p", f"s{i:02d}", float(i), float(i)) for i in range(20)]
    first = apply(rule, ranked).pairs[0]
    assert (first.winner, first.loser) == ("s19", "s00")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (BestVersusWorst(weights={"melodie": 1.0}), "best_versus_worst: weights: .* Did you mean 'melody'"),
        (Pareto(weights={"x": 1.0}), "pareto: weights: 'x' is not among the mined axes. Mined: melody, sound"),
        (StrongDomination(primary=["sonud"]), "strong_domination: primary: .*Did you mean 'sound'"),
        (CrossPair(couples=[["melody", "lyrics"]]), "cross_pair: couples: 'lyrics'"),
        (RealVersusSample(weights={"melodie": 1.0}), "real_versus_sample: weights: .* Did you mean 'melody'"),
    ],
)  # fmt: skip
def test_an_axis_that_is_not_mined_is_named(rule, says):
    with pytest.raises(ConfigError, match=says):
        apply(rule, prompt(a=(1.0, 2.0), b=(2.0, 1.0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: BestVersusWorst(min_margin=0.0),
        lambda: BestVersusWorst(min_margin=math.nan),
        lambda: BestVersusWorst(pairs_per_prompt=0),
        lambda: BestVersusWorst(weights={"melody": -1.0}),
        lambda: BestVersusWorst(weights={"melody": math.nan}),
        lambda: StrongDomination(primary_percentile=101.0),
        lambda: StrongDomination(other_percentile=-1.0),
        lambda: StrongDomination(pairs_per_prompt=0),
        lambda: CrossPair(couples=[["melody"]]),
        lambda: CrossPair(couples=[["melody", "melody"]]),
        lambda: CrossPair(quantile=1.0),
        lambda: CrossPair(min_margin=0.0),
        lambda: CrossPair(pairs_per_prompt=0),
        lambda: Pareto(temperature=-1.0),
        lambda: Pareto(min_gap=0.0),
        lambda: Pareto(weights={"melody": -1.0}),
        lambda: Pareto(pairs_per_prompt=0),
        lambda: PerAxis(min_margin=0.0),
        lambda: PerAxis(tolerance=-1.0),
        lambda: PerAxis(pairs_per_prompt=0),
    ],
)
def test_wrong_parameters_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_z_scores_have_mean_zero_and_spread_one():
    scores = np.array([(i**2, 3.0) for i in range(5)] + [(7.0, 7.0), (9.0, 9.0)], float)
    melody, sound = z_scores(scores, [0, 5, 7])[:5].T
    assert melody.sum() == pytest.approx(0)
    assert (melody**2).sum() / 5 == pytest.approx(1)
    assert not sound.any()
