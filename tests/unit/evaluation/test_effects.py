"""Paired comparison: matched by sample, judged by prompt."""

import pytest

from diffdpo.data.samples import SampleRow
from diffdpo.errors import DataError
from diffdpo.evaluation.effects import PairedSample, effects, pair_rows, standardised_change, verdict
from diffdpo.evaluation.selection import RoundResult, round_result


def row(name, **others):
    return SampleRow(sample_id=name, prompt_id=name[0], **{"frames": 10, **others})


def matched(name, before, after):
    keys = ("key", "judge")
    return PairedSample(
        sample_id=name, prompt_id=name[0], group=name[0],
        baseline=dict(zip(keys, before, strict=True)), aligned=dict(zip(keys, after, strict=True)),
    )  # fmt: skip


PAIRS = [
    matched(f"{c}{i}", (j + i, 5 + j), (j + i + 1, 5 + j)) for j, c in enumerate("abcdefgh") for i in range(2)
]


def test_rows_are_matched_by_sample():
    pairs = pair_rows([row("a1"), row("b1"), row("c1")], [row("b1", model="m"), row("a1", model="m")])
    assert [(one.sample_id, two.sample_id, two.model) for one, two in pairs] == [
        ("a1", "a1", "m"),
        ("b1", "b1", "m"),
    ]


@pytest.mark.parametrize("difference", [{"seed": 1}, {"sampling": '{"steps": 9}'}, {"frames": 9}])
def test_songs_made_differently_are_not_compared(difference):
    with pytest.raises(DataError, match="sample both models with the same prompts, seeds and sampler"):
        pair_rows([row("a1")], [row("a1", **difference)])
    with pytest.raises(DataError, match="share no sample"):
        pair_rows([row("a1")], [row("b1")])


@pytest.mark.parametrize(
    "sampling",
    [
        '{"steps": 6, "batch": 3, "compile": true}',  # which change no song
        '{"steps": 6, "knobs": [1], "steering": [1], "reward_guidance": {"weight": 1}}',  # what is compared
        '{"steps": 6, "newer": null, "another": [], "off": false}',  # keys that an older table lacks
    ],
)
def test_songs_that_differ_in_what_is_compared_are_pairs(sampling):
    first = row("a1", sampling='{"steps": 6, "batch": 8}')
    assert pair_rows([first], [row("a1", sampling=sampling)]) == [(first, row("a1", sampling=sampling))]
    with pytest.raises(DataError, match=r"sampling\.steps=6 and 12;"):
        pair_rows([first], [row("a1", sampling=sampling.replace("6", "12"))])
    with pytest.raises(DataError, match=r"sampling\.newer=None and 1;"):
        pair_rows([first], [row("a1", sampling='{"steps": 6, "newer": 1}')])


def test_mined_axes_come_first_and_a_known_shift_is_found():
    mined, judge = effects(PAIRS, ["key"], ["judge", "key"])
    assert (mined.axis, mined.role, judge.axis, judge.role) == ("key", "mined", "judge", "judge")
    assert mined.effect.mean == pytest.approx(1.0)
    assert mined.effect.direction == "better"
    assert judge.effect.mean == 0
    assert judge.effect.direction == "unclear"
    assert (mined.effect.count, mined.effect.clusters) == (16, 8)


def test_scores_that_are_not_numbers_are_left_out_and_counted():
    broken = [*PAIRS, matched("z1", (float("nan"), 1), (1, 1))]
    (mined, judge) = effects(broken, ["key"], ["key", "judge"])
    assert (mined.left_out, judge.left_out) == (1, 0)
    with pytest.raises(DataError, match="no axis has scores"):
        effects(PAIRS, ["key"], ["other"])


def test_the_verdict_says_what_fell():
    fallen = [
        matched(p.sample_id, tuple(p.baseline.values()), (p.aligned["key"], p.baseline["judge"] - 2))
        for p in PAIRS
    ]
    sentence = verdict(effects(fallen, ["key"], ["key", "judge"]))
    assert sentence == "Better on 1 of 1 mined axes; the held-out judge judge fell."


def test_the_change_of_a_song_is_in_baseline_deviations_of_the_mined_axes():
    found = effects(PAIRS, ["key"], ["key", "judge"])
    assert standardised_change(PAIRS[0], found) == pytest.approx(1 / found[0].baseline_std)


def test_few_prompts_give_no_verdict_and_no_score_to_choose_a_round_by():
    few = effects(PAIRS[:2], ["key"], ["judge", "key"])
    assert verdict(few) == "Unclear: 1 prompt, and a verdict needs 8."
    assert verdict(effects(PAIRS[:14], ["key"], ["judge", "key"])).startswith("Unclear: 7 prompts")
    assert round_result(few, []) == RoundResult()
    assert round_result(effects(PAIRS, ["key"], ["judge", "key"]), []).score > 0
