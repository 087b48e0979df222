"""Coverage: how often a 95 % interval over prompts holds the effect that the data were drawn with."""

import numpy as np
import pytest

from diffdpo.statistics import paired_effect

EXPERIMENTS = 1500


@pytest.mark.parametrize(("prompts", "per_prompt", "low"), [(8, 2, 0.935), (24, 2, 0.935), (64, 4, 0.935)])
def test_an_interval_holds_the_effect_as_often_as_it_says(prompts, per_prompt, low):
    generator, effect, hits = np.random.default_rng(0), 0.3, 0
    clusters = [f"p{i}" for i in range(prompts) for _ in range(per_prompt)]
    for _ in range(EXPERIMENTS):
        own = np.repeat(generator.normal(effect, 0.5, prompts), per_prompt)
        difference = own + generator.normal(0, 0.5, len(own))
        baseline = generator.normal(size=len(own))
        interval = paired_effect(baseline, baseline + difference, clusters)
        hits += interval.low <= effect <= interval.high
    assert low <= hits / EXPERIMENTS <= 0.97


def test_an_interval_over_samples_would_be_too_narrow():
    """The negative control: songs of one prompt are alike, so samples must not be drawn one by one."""
    generator, hits = np.random.default_rng(1), 0
    for _ in range(EXPERIMENTS):
        own = np.repeat(generator.normal(0.3, 0.5, 24), 4)
        difference = own + generator.normal(0, 0.2, len(own))
        each = [str(i) for i in range(len(own))]
        interval = paired_effect(np.zeros(len(own)), difference, each)
        hits += interval.low <= 0.3 <= interval.high
    assert hits / EXPERIMENTS < 0.8
