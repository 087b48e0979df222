"""When to stop rounds of alignment, and which round's model to keep: the best, not the last.

Mined axes rise for as long as training goes on, which proves nothing. Rounds end when a judge falls, or when the
winners' error rises: then the policy moves away from the songs that it should prefer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffdpo.checks import check_range
from diffdpo.evaluation.effects import AxisEffect, too_few_prompts


@dataclass(frozen=True)
class StopRule:
    """The conditions under which rounds end before their number is reached."""

    judges: bool = True
    """Stop when the interval of a judge's change since the beginning lies below zero. Needs validation prompts."""
    max_winner_rise: float = 0.05
    """Stop when a round ends with the winners' error this share above the reference's; inf: never. A small rise is
    no failure: a policy that moves further than its winners did leaves them behind (docs/theory/objectives.md). It
    is measured in training, on the whole adapter, whatever `adapter_strength`."""
    patience: int = 1
    """Stop after so many rounds in a row without a new best. Needs validation prompts."""

    max_kl: float = math.inf
    """Stop when a round's model is further than this from the first, in nats a second of song. Needs validation
    prompts. The model is then an earlier one, as MusicRL takes an early checkpoint; inf: never."""

    def __post_init__(self) -> None:
        check_range(self, "max_winner_rise", low=0, high=math.inf, prefix="stop.")
        check_range(self, "max_kl", above=0, high=math.inf, prefix="stop.")
        check_range(self, "patience", low=1, prefix="stop.")


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """The outcome of one round, as far as the stop rule needs it."""

    score: float | None = None
    """Mean change of the mined axes since the beginning, in standard deviations, on validation prompts."""
    fallen_judges: tuple[str, ...] = ()
    """Judges that fell beyond their interval."""
    winner_rise: float | None = None
    """Rise of the winners' error over the reference's at the end of training, as a share of the reference's."""
    kl: float | None = None
    """KL divergence from the first model, in nats a second of song."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which round is best so far, and whether to stop."""

    best: int
    """Number of the round whose model is kept; 0 is the model that it began with."""
    stop: bool
    reason: str


def decide(results: Sequence[RoundResult], rule: StopRule) -> Decision:
    """The decision after these rounds, the newest last. A round that breaks the rule is never the best."""
    best, best_score, stale_rounds = 0, -math.inf, 0
    for number, result in enumerate(results, start=1):
        if violation := _violation(result, rule):
            return Decision(best=best, stop=True, reason=f"round {number}: {violation}")
        if result.score is None:
            best, stale_rounds = number, 0  # nothing to choose by: the newest
        elif result.score > max(best_score, 0.0):
            best, best_score, stale_rounds = number, result.score, 0
        else:
            stale_rounds += 1
        if stale_rounds >= rule.patience:
            return Decision(
                best=best,
                stop=True,
                reason=f"round {number}: no gain over round {best} in {stale_rounds} round(s)",
            )
    return Decision(best=best, stop=False, reason="")


def _violation(result: RoundResult, rule: StopRule) -> str:
    if rule.judges and result.fallen_judges:
        return f"the judge {', '.join(result.fallen_judges)} fell beyond its interval"
    if result.winner_rise is not None and result.winner_rise > rule.max_winner_rise:
        return f"the winners' error rose {result.winner_rise:.1%} above the reference's"
    if result.kl is not None and result.kl > rule.max_kl:
        return f"the model is {result.kl:.3g} nats a second from the first, the limit is {rule.max_kl:g}"
    return ""


def round_result(
    axis_effects: Sequence[AxisEffect], metrics: Sequence[Mapping[str, Any]], kl: float | None = None
) -> RoundResult:
    """The outcome of a round, from the effects on validation prompts (empty without) and the rows of training.

    Fewer than 8 prompts give no score.
    """
    decisive_effects = [] if too_few_prompts(axis_effects) else axis_effects
    effect_sizes = [a.effect.effect_size for a in decisive_effects if a.role == "mined"]
    return RoundResult(
        score=sum(effect_sizes) / len(effect_sizes) if effect_sizes else None,
        fallen_judges=tuple(
            a.axis for a in axis_effects if a.role == "judge" and a.effect.direction == "worse"
        ),
        winner_rise=winner_rise(metrics),
        kl=kl,
    )


def winner_rise(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """How far the winners' error lies above the reference's over the last quarter of training, as a share of it.

    None for objectives without winners.
    """
    rows = [row for row in metrics if "winner_gain" in row and "winner_error" in row]
    rows = rows[-max(1, len(rows) // 4) :]
    if not rows:
        return None
    gain = math.fsum(row["winner_gain"] for row in rows)
    reference = math.fsum(row["winner_error"] + row["winner_gain"] for row in rows)
    return -gain / reference
