"""The scale of a slider: slopes, intervals and the usable range where they are known."""

import math

import numpy as np
import pytest

from diffdpo.evaluation.strength import fit_response, usable_range

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


def songs(change, prompts=12, noise=0.0, seed=0):
    """Values of one song a prompt at every strength; the base's have mean 5 and spread 2."""
    generator = np.random.default_rng(seed)
    base = 5 + 2 * generator.standard_normal(prompts)
    return {
        s: {
            f"s{i}": b + change(s) + (noise * generator.standard_normal() if s else 0)
            for i, b in enumerate(base)
        }
        for s in STRENGTHS
    }


CLUSTERS = {f"s{i}": f"p{i}" for i in range(40)}


def test_a_line_has_its_slope_in_sd_of_the_base_and_is_usable_throughout():
    values = songs(lambda s: 3 * s)
    spread = float(np.std(list(values[0.0].values()), ddof=1))
    response = fit_response("loud", values, CLUSTERS)
    assert response.slope.value == pytest.approx(3 / spread)
    assert (response.slope.low, response.slope.high) == pytest.approx((3 / spread, 3 / spread))
    assert [c.value for c in response.changes] == pytest.approx(
        [3 * s / spread for s in (-1, -0.5, 0.5, 1, 2)]
    )
    assert (response.low, response.high) == (-1.0, 2.0)
    assert response.is_monotone
    assert response.is_measured
    assert response.sentence == (
        f"strength 1 changes loud by {3 / spread:+.2g} sd ({3 / spread:.2g} to {3 / spread:.2g}); "
        "usable from -1 to 2"
    )


def test_the_interval_holds_the_slope_and_leaves_out_zero_only_where_there_is_one():
    held, found = 0, 0
    for seed in range(60):
        values = songs(lambda s: 0.8 * s, noise=1.0, seed=seed)
        spread = float(np.std(list(values[0.0].values()), ddof=1))
        response = fit_response("x", values, CLUSTERS)
        held += response.slope.low <= 0.8 / spread <= response.slope.high
        found += fit_response("x", songs(lambda s: 0.0, noise=1.0, seed=seed), CLUSTERS).is_measured
    assert held >= 52  # of 60 at 95 %
    assert found <= 8


def test_saturation_and_reversal_end_the_range():
    assert usable_range([-1, 0.5, 1, 2, 3], [-2.0, 1.0, 2.0, 2.1, 1.9], 2.0) == (-1, 2)
    assert usable_range([-1, 0.5, 1, 2], [-2.0, 1.0, 2.0, 1.5], 2.0) == (-1, 1)  # turns back
    assert usable_range([1, 4], [2.0, 2.2], 2.0) == (0, 1)  # of 8
    assert usable_range([-1, 1], [1.0, 1.0], 0.5) == (0, 0)  # the same on both sides
    assert usable_range([-2, -1, 1], [4.0, 2.0, -2.0], -2.0) == (-2, 1)


def test_a_bowl_has_no_direction_and_few_prompts_decide_nothing():
    bowl = fit_response("x", songs(lambda s: s * s, noise=0.01), CLUSTERS)
    assert not bowl.is_monotone
    few = fit_response("x", songs(lambda s: 3 * s, prompts=5, noise=0.1), CLUSTERS)
    assert not few.is_measured
    assert "no measured effect, over 5 prompts" in few.sentence


def test_songs_without_a_number_are_left_out_and_a_constant_axis_has_no_response():
    values = songs(lambda s: s)
    values[1.0]["s3"] = math.nan
    del values[2.0]["s4"]
    assert fit_response("x", values, CLUSTERS).prompts == 10
    assert fit_response("x", {s: dict.fromkeys(v, 1.0) for s, v in values.items()}, CLUSTERS) is None
    assert fit_response("x", {s: {"s0": 1.0} for s in STRENGTHS}, CLUSTERS) is None
