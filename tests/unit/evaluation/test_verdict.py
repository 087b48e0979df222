"""The verdict: each rule alone fails for its own reason, and what is absent is named."""

import dataclasses
import json

import numpy as np
import pytest

from diffdpo.evaluation.band import BAND_WITNESSES, band_change, real_bands
from diffdpo.evaluation.diversity import diversity_changes, spread_changes
from diffdpo.evaluation.effects import AxisEffect, PairedSample, effects
from diffdpo.evaluation.evidence import gather_evidence, held_out_winner_error, witness_values
from diffdpo.evaluation.verdict import Evidence, VerdictLimits, reach_verdict
from diffdpo.statistics import Interval, paired_effect

PROMPTS = [f"p{k // 2:02d}" for k in range(48)]
RNG = np.random.default_rng(0)
BASE = {axis: RNG.normal(size=48) for axis in BAND_WITNESSES}
REAL = {axis: RNG.normal(size=500) for axis in BAND_WITNESSES}
NOISE = {axis: RNG.normal(size=48) for axis in BAND_WITNESSES}
EMBEDDINGS = RNG.normal(size=(48, 8))


def model(shift=0.2, share=0.8):
    """Songs of a model: the base's moved by `shift`, with a part of their own; total spread 1."""
    return {axis: shift + share * BASE[axis] + (1 - share**2) ** 0.5 * NOISE[axis] for axis in BASE}


def evidence(aligned, embeddings=EMBEDDINGS, **others):
    judges = {
        axis: paired_effect(BASE[axis], aligned[axis], PROMPTS) for axis in ("note.triad", "beat.coherence")
    }
    pieces = {
        "judges": judges,
        "band": band_change(BASE, aligned, PROMPTS, real_bands(REAL), real=REAL),
        "diversity": diversity_changes({"style": (EMBEDDINGS, embeddings)}, PROMPTS),
        "spreads": spread_changes(BASE, aligned, PROMPTS),
        "winner_error": 1.02,
        "drift": Interval(40.0, 30.0, 50.0),
    }
    return Evidence(**{**pieces, **others})


HONEST = evidence(model())


def test_an_honest_model_passes_and_nothing_is_absent():
    verdict = reach_verdict(HONEST, VerdictLimits(drift_kl=100))
    assert verdict.passed
    assert verdict.reasons == ()
    assert verdict.numbers["absent"] == []
    assert verdict.text == "Passed."
    assert verdict.numbers["drift"] == {"kl": 40.0, "low": 30.0, "high": 50.0, "limit": 100}
    assert json.dumps(dataclasses.asdict(verdict))


def only_reason(piece, limits=None):
    verdict = reach_verdict(piece, limits)
    assert not verdict.passed
    assert len(verdict.reasons) == 1, verdict.reasons
    return verdict.reasons[0]


def test_a_hacked_model_fails_for_the_judge_that_fell():
    hacked = model()
    hacked["beat.coherence"] = hacked["beat.coherence"] - 1.1
    assert only_reason(evidence(hacked, band=HONEST.band)).startswith("the judge beat.coherence fell by")


def test_an_over_optimised_model_fails_for_the_band_it_left():
    over = model(shift=1.6)
    reasons = reach_verdict(evidence(over)).reasons
    assert reasons
    assert all(reason.startswith("over-optimised") for reason in reasons)


def test_a_collapsed_model_fails_for_its_diversity():
    collapsed = {axis: values.reshape(24, 2).mean(1).repeat(2) for axis, values in model().items()}
    collapsed = {axis: values + 0.3 * NOISE[axis] for axis, values in collapsed.items()}
    alike = EMBEDDINGS.reshape(24, 2, 8).mean(1).repeat(2, axis=0) + 0.1 * EMBEDDINGS
    reasons = reach_verdict(evidence(collapsed, alike, band=HONEST.band)).reasons
    assert any("distance.style" in reason for reason in reasons)
    assert any("spread of" in reason for reason in reasons)
    assert all(reason.startswith(("diversity", "spread")) for reason in reasons)


def test_diversity_is_judged_as_a_point_value_with_a_limit_of_a_tenth():
    value = HONEST.diversity["vendi.style"]
    for ratio, passed in ((0.91, True), (0.89, False)):
        changed = dataclasses.replace(value, ratio=dataclasses.replace(value.ratio, value=ratio))
        verdict = reach_verdict(dataclasses.replace(HONEST, diversity={"vendi.style": changed}))
        assert verdict.passed == passed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"winner_error": 1.11}, "held-out winners' error is 1.11 times"),
        ({"winner_error": float("nan")}, "held-out winners' error is nan"),
        ({"drift": Interval(101.0, 90.0, 120.0)}, "drift of 101 (90 to 120) nats a song, limit 100"),
        ({"judges": None}, "no valid judge was scored"),
        ({"judges": {}}, "no valid judge was scored"),
        (
            {"lyrics": paired_effect(np.zeros(16), np.linspace(0.1, 0.2, 16), [str(k) for k in range(16)])},
            "phoneme error rate rose by 0.15",
        ),
    ],
)
def test_each_rule_fails_for_its_own_reason(changes, says):
    reason = only_reason(dataclasses.replace(HONEST, **changes), VerdictLimits(drift_kl=100))
    assert says in reason


def test_words_that_became_clearer_pass():
    clearer = paired_effect(np.zeros(16), np.linspace(-0.2, -0.1, 16), [str(k) for k in range(16)])
    assert reach_verdict(dataclasses.replace(HONEST, lyrics=clearer)).passed


def test_absent_evidence_is_named_and_never_passes_in_silence():
    verdict = reach_verdict(Evidence(judges=HONEST.judges, has_winners=True, has_lyrics=True))
    assert verdict.passed
    assert verdict.numbers["absent"] == [
        "band", "diversity", "spreads", "held-out winners", "drift", "lyrics",
    ]  # fmt: skip
    assert verdict.text.startswith("Passed. Not measured: band, diversity")
    nothing = reach_verdict(Evidence())
    assert not nothing.passed
    assert "judges" in nothing.numbers["absent"]
    assert "lyrics" not in nothing.numbers["absent"], "an instrumental model has no words"


def test_few_prompts_decide_nothing():
    few = {
        axis: paired_effect(BASE[axis][:14], BASE[axis][:14] - 9, PROMPTS[:14]) for axis in ("note.triad",)
    }
    assert only_reason(Evidence(judges=few)) == "judges compared on 7 prompts, and a verdict needs 8"


def test_judges_without_an_effect_fail_a_model_in_one_case_of_twenty_however_many_there_are():
    rng, failed = np.random.default_rng(1), 0
    names = [f"p{k:02d}" for k in range(24)]
    for _ in range(60):
        judges = {str(k): paired_effect(np.zeros(24), rng.normal(size=24), names) for k in range(6)}
        failed += not reach_verdict(Evidence(judges=judges)).passed
    assert failed / 60 <= 0.025 + 3 * (0.025 * 0.975 / 60) ** 0.5  # half of the 5 %: only a fall counts


def pairs_of(aligned):
    return [
        PairedSample(
            sample_id=f"s{k}", prompt_id=name, group=name,
            baseline={axis: values[k] for axis, values in BASE.items()},
            aligned={axis: values[k] for axis, values in aligned.items()},
        )
        for k, name in enumerate(PROMPTS)
    ]  # fmt: skip


def test_evidence_is_gathered_from_pairs_as_far_as_it_is_there():
    aligned = model()
    pairs = pairs_of(aligned)
    judges = ("note.triad", "beat.coherence", "note.recur")
    diagnoses = [axis for axis in BAND_WITNESSES if axis not in judges]
    axis_effects = effects(pairs, ["note.recur"], list(BAND_WITNESSES), diagnoses)
    gathered = gather_evidence(
        pairs,
        axis_effects,
        metrics=[
            {"validation/winner_error_ratio": 1.3},
            {"validation/winner_error_ratio": 1.02},
            {"loss": 1.0},
        ],
        bands=real_bands(REAL),
        diversity=HONEST.diversity,
        winner_error=1.5,
        drift=HONEST.drift,
    )
    assert gathered.judges == HONEST.judges, "neither a mined axis nor a diagnosis judges"
    assert gathered.winner_error == 1.02, "of the pairs that the training held out"
    assert gathered.band.change == HONEST.band.change
    assert gathered.spreads.keys() == HONEST.spreads.keys()
    assert reach_verdict(gathered).passed
    assert gather_evidence(pairs, axis_effects, winner_error=1.5).winner_error == 1.5
    bare = gather_evidence(pairs, axis_effects)
    assert (bare.band, bare.diversity, bare.winner_error, bare.has_winners) == (None, None, None, False)
    assert isinstance(axis_effects[0], AxisEffect)


def test_a_witness_without_any_score_is_left_out_and_a_song_without_one_is_nan():
    pairs = pairs_of(model())
    pairs = [
        dataclasses.replace(pair, aligned={"note.key": 1.0} if k else {}) for k, pair in enumerate(pairs)
    ]
    sides = witness_values(pairs, BAND_WITNESSES)
    assert set(sides[0]) == set(BAND_WITNESSES)
    assert set(sides[1]) == {"note.key"}
    assert np.isnan(sides[1]["note.key"][0])
    assert gather_evidence(pairs, [], bands=real_bands(REAL)).band is None


def test_the_error_of_held_out_winners_is_the_newest():
    assert held_out_winner_error([]) is None
    assert held_out_winner_error([{"winner_error": 2.0}]) is None
    rows = [{"validation/winner_error_ratio": 1.2}, {"validation/winner_error_ratio": None}]
    assert held_out_winner_error(rows) == 1.2
