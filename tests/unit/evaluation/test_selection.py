"""When rounds end and which model is kept, on histories worked out by hand."""

import pytest

from diffdpo.evaluation.selection import RoundResult, StopRule, decide, winner_rise


def rounds(*scores, **last):
    results = [RoundResult(score=score, winner_rise=0.0) for score in scores[:-1]]
    return [*results, RoundResult(score=scores[-1], **{"winner_rise": 0.0, **last})]


@pytest.mark.parametrize(
    ("results", "best", "stop", "says"),
    [
        (rounds(0.1), 1, False, ""),
        (rounds(0.1, 0.3), 2, False, ""),
        (rounds(0.3, 0.1), 1, True, "no gain over round 1"),
        (rounds(-0.1), 0, True, "no gain over round 0"),
        (
            rounds(0.1, 0.3, fallen_judges=("musicnn.typicality",)),
            1,
            True,
            "the judge musicnn.typicality fell",
        ),
        (rounds(0.3, fallen_judges=("judge",)), 0, True, "round 1: the judge"),
        (rounds(0.1, 0.3, winner_rise=0.06), 1, True, "winners' error rose 6.0%"),
        (rounds(0.1, 0.3, kl=50.0), 2, False, ""),
        ([RoundResult(), RoundResult()], 2, False, ""),
        ([RoundResult(), RoundResult(winner_rise=0.5)], 1, True, "rose 50.0%"),
    ],
    ids=[
        "first",
        "better",
        "worse",
        "never-better",
        "judge",
        "judge-at-once",
        "winner",
        "far",
        "blind",
        "blind-winner",
    ],
)
def test_the_best_round_is_kept_and_the_rule_ends_it(results, best, stop, says):
    decision = decide(results, StopRule())
    assert (decision.best, decision.stop) == (best, stop)
    assert says in decision.reason


def test_patience_waits_and_switches_can_be_turned_off():
    assert not decide(rounds(0.3, 0.1), StopRule(patience=2)).stop
    assert decide(rounds(0.3, 0.1, 0.2), StopRule(patience=2)).best == 1
    ignored = StopRule(judges=False, max_winner_rise=float("inf"))
    kept = decide(rounds(0.1, 0.3, fallen_judges=("judge",), winner_rise=9.0), ignored)
    assert (kept.best, kept.stop) == (2, False)


def test_a_model_beyond_the_limit_of_kl_is_not_kept():
    decision = decide(rounds(0.1, 0.3, kl=12.5), StopRule(max_kl=12.0))
    assert (decision.best, decision.stop) == (1, True)
    assert decision.reason == "round 2: the model is 12.5 nats a second from the first, the limit is 12"


def test_a_decision_once_made_is_not_unmade_by_later_rounds():
    history = rounds(0.1, 0.3, fallen_judges=("judge",))
    assert decide([*history, RoundResult(score=9.0)], StopRule()) == decide(history, StopRule())


def test_the_winners_rise_is_a_share_of_the_references_error_over_the_last_quarter():
    early = [{"winner_gain": 5.0, "winner_error": 1.0}] * 6
    late = [{"winner_gain": -0.1, "winner_error": 1.1}, {"winner_gain": -0.3, "winner_error": 1.3}]
    assert winner_rise(early + late) == pytest.approx(0.2)
    assert winner_rise([{"loss": 1.0}]) is None


def test_the_rule_is_checked():
    with pytest.raises(ValueError, match=r"stop\.patience must be at least 1"):
        StopRule(patience=0)
    with pytest.raises(ValueError, match=r"max_winner_rise must be at least 0, got nan"):
        StopRule(max_winner_rise=float("nan"))
