"""What every registered mining rule must do, those of other packages too."""

import math
import random
from dataclasses import fields

import numpy as np
import pytest
from contract.rule_fixtures import CASES, OF_DATA_SETS, RuleCase, rule_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from support.candidates import AXES, apply, candidate, prompts_of

from diffdpo.mining import RULES, mine_candidates, to_candidates
from diffdpo.parts import build_rule
from diffdpo.registry import Choice


def each(promise=None):
    """A test for every case, or for those that promise something."""
    cases = {name: case for name, case in rule_cases().items() if promise is None or getattr(case, promise)}
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def world(seed, *, integers=False, sizes=(1, 2, 3, 5, 8)):
    """Songs of three prompts with scores at random, or with whole numbers that tie."""
    generator = np.random.default_rng(seed)
    songs = []
    for prompt in "abc":
        for k in range(generator.choice(sizes)):
            scores = generator.integers(-3, 4, 2) if integers else generator.normal(size=2)
            songs.append(candidate(prompt, f"{prompt}{k:02d}", *map(float, scores)))
    return songs


def check_prompts(case: RuleCase, songs):
    """Pairs stay within prompts, and a prompt has pairs or a reason why not."""
    mined = apply(case.rule, songs)
    prompt_of = {song.sample_id: song.prompt_id for song in songs}
    for pair in mined.pairs:
        assert prompt_of[pair.winner] == prompt_of[pair.loser] == pair.prompt_id == pair.group
        assert pair.winner != pair.loser
    paired = {pair.prompt_id for pair in mined.pairs}
    assert paired | set(mined.reasons) == set(prompt_of.values())
    assert not paired & set(mined.reasons)
    assert all(mined.reasons.values())


def check_margins(case: RuleCase, songs):
    """Margins are differences of z-scores within the prompt; the winner is ahead on the axis that decided."""
    z = {
        name: dict(zip(AXES, row, strict=True))
        for prompt in prompts_of(songs)
        for name, row in zip(prompt.sample_ids, prompt.z.tolist(), strict=True)
    }
    for pair in apply(case.rule, songs).pairs:
        assert pair.margins == {axis: z[pair.winner][axis] - z[pair.loser][axis] for axis in AXES}
        assert pair.axis in ("", *AXES)
        assert pair.margins.get(pair.axis, max(pair.margins.values())) > 0


def check_order_of_candidates(case: RuleCase, songs, seed=0):
    mined = apply(case.rule, songs)
    assert apply(case.rule, random.Random(seed).sample(songs, len(songs))) == mined


def check_order_of_axes(case: RuleCase, songs):
    """For scores without ties: which of two equal pairs comes first may hang on the rounding of a sum."""
    mined, turned = apply(case.rule, songs), apply(case.rule, songs, AXES[::-1])
    assert turned.pairs == mined.pairs
    assert turned.reasons == mined.reasons


def check_ties(case: RuleCase):
    tied = [candidate("p", f"s{k}", 1.0, -2.0) for k in range(5)]
    mined = apply(case.rule, tied)
    assert mined.pairs == ()
    assert "tied" in mined.reasons["p"]


def check_missing_scores(case: RuleCase, songs):
    """Songs that lack a score are left out, and counted in the reason of a prompt that has too few others."""
    broken = [candidate(song.prompt_id, f"{song.sample_id}x", math.nan, 9.0) for song in songs]
    broken += [candidate(song.prompt_id, f"{song.sample_id}y", 9.0, math.inf) for song in songs]
    assert apply(case.rule, [*songs, *broken]).pairs == apply(case.rule, songs).pairs
    mined = apply(case.rule, [candidate("p", "a", 1.0, 1.0), candidate("p", "b", math.nan, 0.0)])
    assert mined.pairs == ()
    assert "1 candidate(s) with a score on every axis, 2 in all" in mined.reasons["p"]


def check_one_sided(case: RuleCase, songs):
    pairs = apply(case.rule, songs).pairs
    assert len({(pair.winner, pair.loser) for pair in pairs}) == len(pairs)
    for axis in {pair.axis for pair in pairs}:
        winners = {pair.winner for pair in pairs if pair.axis == axis}
        assert not winners & {pair.loser for pair in pairs if pair.axis == axis}


def check_affine(case: RuleCase, songs, exponent, shift):
    """Whole numbers, prompts of 2, 4 or 8 songs and a scale that is a power of two: no rounding differs."""
    moved = [
        candidate(
            song.prompt_id,
            song.sample_id,
            song.scores["melody"] * 2.0**exponent + shift,
            song.scores["sound"],
        )
        for song in songs
    ]
    assert apply(case.rule, moved) == apply(case.rule, songs)


seeds = st.integers(0, 2**32 - 1)


@each()
@settings(max_examples=20)
@given(seed=seeds, integers=st.booleans())
def test_pairs_stay_within_prompts_and_others_have_a_reason(case, seed, integers):
    check_prompts(case, world(seed, integers=integers))
    check_margins(case, world(seed, integers=integers))


@each()
@settings(max_examples=20)
@given(seed=seeds, integers=st.booleans())
def test_the_order_of_candidates_and_of_axes_changes_nothing(case, seed, integers):
    check_order_of_candidates(case, world(seed, integers=integers), seed)
    check_order_of_axes(case, world(seed))


@each()
def test_ties_teach_nothing(case):
    check_ties(case)


@each()
@settings(max_examples=20)
@given(seed=seeds, integers=st.booleans())
def test_songs_without_a_number_are_left_out_with_a_reason(case, seed, integers):
    check_missing_scores(case, world(seed, integers=integers))


@each("one_sided")
@settings(max_examples=20)
@given(seed=seeds, integers=st.booleans())
def test_no_song_wins_and_loses_on_one_axis_where_the_rule_promises_it(case, seed, integers):
    check_one_sided(case, world(seed, integers=integers))


@each("affine")
@settings(max_examples=20)
@given(seed=seeds, exponent=st.integers(0, 8), shift=st.integers(-64, 64))
def test_neither_unit_nor_zero_of_an_axis_matters_where_the_rule_promises_it(case, seed, exponent, shift):
    check_affine(case, world(seed, integers=True, sizes=(2, 4, 8)), exponent, shift)


@each()
def test_some_pairs_are_found_at_all(case):
    assert any(apply(case.rule, world(seed, sizes=(8,))).pairs for seed in range(20))


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_is_frozen_and_says_what_it_does(name):
    rule = RULES[name]()
    assert rule.__doc__
    assert not rule.__doc__.startswith(f"{RULES[name].__name__}(")  # what a dataclass without one gets
    first = fields(rule)[0].name
    with pytest.raises(AttributeError):
        setattr(rule, first, None)


def test_every_rule_of_the_package_has_its_cases():
    assert set(CASES) | OF_DATA_SETS == set(RULES.entries)


STRANGER = '''"""A rule of another package."""

from dataclasses import dataclass

from diffdpo.mining.base import differences, mine_prompts, select, weighted_mean


@dataclass(frozen=True)
class Widest:
    """The pair with the widest mean margin."""

    margin: float = 0.1

    def __call__(self, prompts, axes):
        def choose(prompt):
            mean = weighted_mean(differences(prompt.z), axes, {})[None]
            return select(mean >= self.margin, mean, limit=1)

        return mine_prompts(prompts, axes, "widest", choose, no_pair_reason="all are alike")
'''


def test_a_rule_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "stranger_rule.py").write_text(STRANGER)
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffdpo.rules]\nwidest = stranger_rule:Widest\n")
    monkeypatch.syspath_prepend(tmp_path)
    case = rule_cases()["widest"]
    assert type(case.rule).__name__ == "Widest"
    for seed in range(5):
        check_prompts(case, world(seed))
        check_margins(case, world(seed))
        check_order_of_candidates(case, world(seed), seed)
        check_order_of_axes(case, world(seed))
        check_missing_scores(case, world(seed))
    check_ties(case)
    rule = build_rule(Choice("widest", {"margin": 0.5}))
    assert rule.margin == 0.5
    songs = [candidate("p", "good", 2.0, 2.0), candidate("p", "bad", 1.0, 1.0)]
    (pair,) = mine_candidates(to_candidates(songs, AXES), rule).pairs
    assert (pair.winner, pair.loser, pair.rule) == ("good", "bad", "widest")
    assert build_rule(Choice("union", {"rules": ["widest"]})).rules == [RULES["widest"]()]
