"""Rules for several axes at once, on prompts whose pairs can be worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from support.candidates import (
    AXES,
    apply,
    candidate,
    integer_scores,
    prompt,
    prompts_of,
    score,
    songs,
    triples,
)

from diffdpo.errors import ConfigError
from diffdpo.mining import (
    BestVersusWorst,
    Candidate,
    CrossPair,
    Pareto,
    PerAxis,
    StrongDomination,
    Union,
)
from diffdpo.mining.pareto import dominates, fronts, win_rates
from diffdpo.mining.strong_domination import distances
from diffdpo.parts import build_rule
from diffdpo.registry import Choice


class TestStrongDomination:
    group = prompt(a=(10.0, 5.0), b=(0.0, 0.0), c=(5.0, 9.0), d=(4.0, 4.0))
    # |Δ melody|: 10 5 6 5 4 1, median 5; |Δ sound|: 5 4 1 9 4 5, median 4.5

    def test_the_differences_are_those_within_prompts(self):
        other = [candidate("q", "e", 100.0, 100.0), candidate("q", "f", 103.0, 100.0)]
        melody, sound = distances(prompts_of([*self.group, *other]), 2).T
        assert sorted(melody) == [1, 3, 4, 5, 5, 6, 10]
        assert sorted(sound) == [0, 1, 4, 4, 5, 5, 9]

    def test_far_ahead_on_one_axis_and_clearly_on_the_other(self):
        rule = StrongDomination(primary_percentile=100)  # melody 10, sound 9
        assert triples(apply(rule, self.group)) == [("c", "b", "sound"), ("a", "b", "melody")]
        # with percentile 80 the bars are 6 and 5; a beats d by 6 on melody but only by 1 on sound
        assert ("a", "d", "melody") not in triples(apply(StrongDomination(primary_percentile=80), self.group))
        lenient = StrongDomination(primary_percentile=80, other_percentile=0)  # others: at least 1
        assert ("a", "d", "melody") in triples(apply(lenient, self.group))

    def test_only_primary_axes_give_pairs(self):
        rule = StrongDomination(primary=["melody"], primary_percentile=100)
        assert triples(apply(rule, self.group)) == [("a", "b", "melody")]

    def test_thresholds_are_shared_by_all_prompts(self):
        """A prompt whose songs are all alike gives no pairs beside one whose songs differ."""
        alike = [candidate("q", f"q{i}", i / 100, i / 100) for i in range(4)]
        mined = apply(StrongDomination(), [*self.group, *alike])
        assert {pair.prompt_id for pair in mined.pairs} == {"p"}
        assert "strongly dominates" in mined.reasons["q"]

    @given(group=songs(score, max_size=20))
    def test_every_pair_keeps_the_published_inequalities(self, group):
        gaps = dict(zip(AXES, distances(prompts_of(group), 2).T, strict=True))
        scores = {c.sample_id: c.scores for c in group}
        for pair in apply(StrongDomination(), group).pairs:
            lead = {axis: scores[pair.winner][axis] - scores[pair.loser][axis] for axis in AXES}
            (other,) = set(AXES) - {pair.axis}
            assert lead[pair.axis] >= np.percentile(gaps[pair.axis], 95)
            assert lead[other] >= np.percentile(gaps[other], 50)


class TestCrossPair:
    def test_the_winner_is_better_on_both(self):
        group = prompt(a=(9.0, 1.0), b=(5.0, 5.0), c=(1.0, 4.0))
        assert triples(apply(CrossPair(), group)) == [("b", "c", "")]

    def test_the_loser_misses_one_axis_or_both(self):
        # medians over all four: 5 and 5; satisfied on both: only a
        group = prompt(a=(6.0, 6.0), b=(9.0, 4.0), c=(1.0, 9.0), d=(4.0, 1.0))
        one = apply(CrossPair(loser="fails_one", pairs_per_prompt=9, min_margin=1e-6), group)
        assert set(triples(one)) == {("a", "d", ""), ("a", "c", "")}  # against b the mean margin is negative
        both = apply(CrossPair(loser="fails_both", pairs_per_prompt=9), group)
        assert triples(both) == [("a", "d", "")]

    def test_a_higher_quantile_asks_more_of_the_winner(self):
        group = [candidate("p", f"s{i}", float(i), float(i)) for i in range(10)]
        rule = CrossPair(loser="fails_one", quantile=0.75, pairs_per_prompt=99)
        assert {winner for winner, _, _ in triples(apply(rule, group))} == {
            "s7",
            "s8",
            "s9",
        }  # 6.75 and above

    def test_axes_outside_the_couple_do_not_count(self):
        axes = ("musicality", "lyrics", "style", "quality")
        group = [
            _song("a", axes, (2.0, 2.0, 0.0, 1.0)),
            _song("b", axes, (1.0, 1.0, 1.0, 0.0)),
        ]
        assert triples(apply(CrossPair(couples=[["musicality", "lyrics"]]), group, axes)) == [("a", "b", "")]
        assert triples(apply(CrossPair(couples=[["style", "quality"]]), group, axes)) == []
        assert triples(
            apply(CrossPair(couples=[["style", "lyrics"], ["quality", "musicality"]]), group, axes)
        ) == [("a", "b", "")]


class TestPareto:
    def test_win_rates_count_wins_and_half_of_the_ties(self):
        rates = win_rates(np.array([[2.0], [1.0], [1.0]]), 0.0)
        assert rates.tolist() == [[1.0, 0.25, 0.25]]

    def test_win_rates_are_bradley_terry(self):
        rates = win_rates(np.array([[1.0], [0.0], [-1.0]]), 0.5)
        assert rates[0, 0] == pytest.approx((1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(-4))) / 2)
        assert rates.sum() == pytest.approx(1.5)  # every game has one point

    def test_fronts_are_peeled(self):
        scores = np.array([(3.0, 1.0), (1.0, 3.0), (2.0, 1.0), (1.0, 1.0), (1.0, 1.0)])
        assert fronts(scores).tolist() == [0, 0, 1, 2, 2]

    @given(group=songs(integer_scores, prompts="p"))
    def test_no_song_of_a_front_dominates_another_and_each_later_song_is_dominated(self, group):
        for of_prompt in prompts_of(group):
            ranks, dominant = fronts(of_prompt.scores), dominates(of_prompt.scores)
            for place, rank in enumerate(ranks):
                assert rank == 0 or dominant[ranks == rank - 1, place].any()
                assert not dominant[ranks == rank, place].any()

    def test_winners_come_from_the_first_front_losers_from_the_last(self):
        group = prompt(a=(4.0, 3.0), b=(3.0, 4.0), c=(2.0, 2.0), d=(1.0, 0.0))
        pairs = triples(apply(Pareto(pairs_per_prompt=9), group))
        assert set(pairs) == {("a", "d", ""), ("b", "d", "")}
        pairs = triples(apply(Pareto(losers="dominated", pairs_per_prompt=9), group))
        assert set(pairs) == {(w, lost, "") for w in "ab" for lost in "cd"}

    def test_a_strict_winner_dominates_its_loser(self):
        group = prompt(a=(9.0, 0.0), b=(5.0, 9.0), c=(4.0, 1.0))  # a and b in front, a worse than c on sound
        loose = Pareto(pairs_per_prompt=9, weights={"melody": 9.0})
        assert set(triples(apply(loose, group))) == {("a", "c", ""), ("b", "c", "")}
        strict = Pareto(pairs_per_prompt=9, weights={"melody": 9.0}, strict=True)
        assert triples(apply(strict, group)) == [("b", "c", "")]

    def test_one_front_gives_no_pair(self):
        mined = apply(Pareto(), prompt(a=(1.0, 2.0), b=(2.0, 1.0)))
        assert mined.pairs == ()
        assert "first front" in mined.reasons["p"]


class TestPerAxis:
    group = prompt(a=(4.0, 2.0), b=(0.0, 2.0), c=(2.0, 4.0), d=(2.0, 0.0))

    def test_each_axis_has_its_pair(self):
        # on each axis 0, 2, 2, 4: z of ±√2
        pairs = apply(PerAxis(), self.group).pairs
        assert {(p.winner, p.loser, p.axis) for p in pairs} == {("a", "b", "melody"), ("c", "d", "sound")}
        assert pairs[0].margins[pairs[0].axis] == pytest.approx(2 * math.sqrt(2))

    def test_the_tolerance_bounds_the_loss_elsewhere(self):
        group = prompt(tuneful=(9.0, 1.0), clean=(1.0, 9.0))
        assert triples(apply(PerAxis(), group)) == []
        both = {("tuneful", "clean", "melody"), ("clean", "tuneful", "sound")}
        assert set(triples(apply(PerAxis(tolerance=math.inf), group))) == both

    def test_a_pair_good_on_both_axes_goes_to_the_wider(self):
        group = prompt(a=(9.0, 5.0), b=(0.0, 0.0), c=(4.0, 5.0), d=(4.5, 4.0))
        assert ("a", "b") in {(w, lost) for w, lost, _ in triples(apply(PerAxis(), group))}
        assert len(apply(PerAxis(pairs_per_prompt=99), group).pairs) == len(
            {(p.winner, p.loser) for p in apply(PerAxis(pairs_per_prompt=99), group).pairs}
        )


class TestUnion:
    def test_the_earlier_rule_has_the_pair(self):
        group = prompt(a=(3.0, 3.0), b=(1.0, 1.0))
        first, second = BestVersusWorst(), PerAxis()
        assert [p.rule for p in apply(Union([first, second]), group).pairs] == ["best_versus_worst"]
        assert [p.rule for p in apply(Union([second, first]), group).pairs] == ["per_axis"]

    def test_it_holds_all_that_its_rules_find(self):
        group = prompt(a=(9.0, 1.0), b=(5.0, 9.0), c=(4.0, 1.0), d=(0.0, 2.0))
        rules = [CrossPair(), PerAxis(tolerance=math.inf)]
        together = {(p.winner, p.loser) for p in apply(Union(rules), group).pairs}
        assert together == {(p.winner, p.loser) for rule in rules for p in apply(rule, group).pairs}

    def test_a_prompt_is_skipped_only_if_no_rule_finds_a_pair(self):
        group = prompt(tuneful=(9.0, 1.0), clean=(1.0, 9.0))
        mined = apply(Union([PerAxis(tolerance=math.inf), BestVersusWorst()]), group)
        assert mined.reasons == {}
        assert "without a loss" in apply(Union([BestVersusWorst()]), group).reasons["p"]

    def test_it_is_built_from_names_and_arguments(self):
        choice = Choice("union", {"rules": ["pareto", {"name": "per_axis", "args": {"min_margin": 1}}]})
        assert build_rule(choice) == Union([Pareto(), PerAxis(min_margin=1.0)])

    @pytest.mark.parametrize(
        ("rules", "says"),
        [
            ([], "no rules"),
            (["paretto"], "Did you mean 'pareto'"),
            (
                [{"name": "per_axis", "args": {"min": 1}}],
                r"unknown key 'rules\[0\].args.min'",
            ),
            ([{"nmae": "per_axis"}], r"unknown key 'rules\[0\].nmae'. Did you mean 'name'"),
        ],
    )
    def test_a_mistake_in_a_part_is_named(self, rules, says):
        with pytest.raises(ConfigError, match=says):
            build_rule(Choice("union", {"rules": rules}))


def test_couples_of_axes_come_through_the_configuration():
    choice = Choice("cross_pair", {"couples": [["melody", "sound"]], "loser": "fails_both"})
    assert build_rule(choice) == CrossPair(couples=[["melody", "sound"]], loser="fails_both")
    with pytest.raises(ConfigError, match="rule 'cross_pair': loser"):
        build_rule(Choice("cross_pair", {"loser": "fails"}))


def _song(name, axes, values):
    scores = dict(zip(axes, values, strict=True))
    return Candidate(prompt_id="p", group="p", sample_id=name, scores=scores)
