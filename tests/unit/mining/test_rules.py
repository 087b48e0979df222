"""Properties that every mining rule must have, alone and in unions."""

import math
import random
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.candidates import AXES, apply, candidate, prompt, prompts_of, rounded, score, songs

from diffdpo.errors import ConfigError
from diffdpo.mining import (
    RULES,
    BestVersusWorst,
    CrossPair,
    Pareto,
    PerAxis,
    StrongDomination,
    Union,
)
from diffdpo.mining.scale import z_scores

VARIANTS = {
    **{name: rule() for name, rule in RULES.items()},
    "weighted_sum": BestVersusWorst(min_axis_margin=-math.inf, weights={"melody": 2.0}, pairs_per_prompt=3),
    "one_primary": StrongDomination(primary=["sound"], primary_percentile=50, other_percentile=0),
    "fails_one": CrossPair(loser="fails_one", pairs_per_prompt=4),
    "fails_both": CrossPair(couples=[["melody", "sound"]], loser="fails_both"),
    "counted_wins": Pareto(temperature=0.0, losers="dominated", strict=True, pairs_per_prompt=9),
    "each_axis_alone": PerAxis(tolerance=math.inf, min_margin=0.1, pairs_per_prompt=4),
    "all_together": Union(
        [StrongDomination(), PerAxis(tolerance=math.inf), CrossPair(), Pareto(), BestVersusWorst()]
    ),
}


@pytest.mark.parametrize("rule", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=25)
@given(group=songs(score) | songs(rounded), seed=st.integers(0, 9))
def test_pairs_stay_within_prompts_and_do_not_depend_on_order(rule, group, seed):
    mined = apply(rule, group)
    shuffled = random.Random(seed).sample(group, len(group))
    assert apply(rule, shuffled) == mined
    prompt_of = {c.sample_id: c.prompt_id for c in group}
    for pair in mined.pairs:
        assert prompt_of[pair.winner] == prompt_of[pair.loser] == pair.prompt_id
        assert pair.winner != pair.loser
    with_pairs = {p.prompt_id for p in mined.pairs}
    assert with_pairs | set(mined.skipped) == set(prompt_of.values())
    assert not with_pairs & set(mined.skipped)


@pytest.mark.parametrize("rule", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=25)
@given(group=songs(score) | songs(rounded))
def test_no_song_wins_and_loses_on_one_axis_and_no_pair_comes_twice(rule, group):
    pairs = apply(rule, group).pairs
    assert len({(p.winner, p.loser) for p in pairs}) == len(pairs)
    for axis in {p.axis for p in pairs}:
        winners = {p.winner for p in pairs if p.axis == axis}
        assert not winners & {p.loser for p in pairs if p.axis == axis}


@pytest.mark.parametrize("rule", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=25)
@given(group=songs(rounded))
def test_a_pair_knows_its_margins_and_its_winner_is_better_where_it_counts(rule, group):
    z = {
        name: dict(zip(AXES, row, strict=True))
        for of_prompt in prompts_of(group)
        for name, row in zip(of_prompt.sample_ids, of_prompt.z.tolist(), strict=True)
    }
    for pair in apply(rule, group).pairs:
        assert pair.margins == {axis: z[pair.winner][axis] - z[pair.loser][axis] for axis in AXES}
        assert max(pair.margins.values()) > 0
        if pair.axis:
            assert pair.margins[pair.axis] > 0


@pytest.mark.parametrize("rule", VARIANTS.values(), ids=VARIANTS)
def test_a_score_that_is_not_a_number_takes_its_song_out(rule):
    whole = prompt(a=(3.0, 3.0), b=(2.0, 2.0), c=(1.0, 1.0), d=(0.0, 0.0))
    broken = [*whole, candidate("p", "e", math.nan, 9.0), candidate("p", "f", 9.0, math.inf)]
    assert apply(rule, broken).pairs == apply(rule, whole).pairs


@pytest.mark.parametrize("rule", [rule for name, rule in VARIANTS.items() if name != "union"])
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


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_is_frozen_and_says_what_it_does(name):
    rule = RULES[name]()
    assert rule.__doc__
    assert not rule.__doc__.startswith(f"{RULES[name].__name__}(")  # what a dataclass without one gets
    first = fields(rule)[0].name
    with pytest.raises(AttributeError):
        setattr(rule, first, None)


def test_z_scores_have_mean_zero_and_spread_one():
    melody, sound = z_scores(np.array([(i**2, 3.0) for i in range(5)], float)).T
    assert melody.sum() == pytest.approx(0)
    assert (melody**2).sum() / 5 == pytest.approx(1)
    assert not sound.any()
