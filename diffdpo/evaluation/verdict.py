"""One verdict on a model: passed or not, with reasons and numbers.

A model passes if no valid judge fell, it is not over-optimised, it has not collapsed, the winners that it was not
trained on are not further from it than from the reference, it has not drifted beyond a limit, and its words are as
clear as before. Evidence that is absent is named, and a verdict without any judge is not passed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffdpo.checks import check_range
from diffdpo.evaluation.band import BandChange
from diffdpo.evaluation.diversity import DiversityChange, SpreadChange
from diffdpo.statistics import MIN_CLUSTERS, Effect, Interval, adjust_p_values

LEVEL = 0.05


@dataclass(frozen=True)
class VerdictLimits:
    """The limits of a verdict."""

    diversity: float = 0.1
    """Largest loss of a Vendi score, and of the distance of two songs of a prompt, as a share of the base's."""
    winner_error: float = 1.1
    """Largest error of held-out winners, in that of the reference."""
    drift_kl: float = math.inf
    """Largest KL divergence from the base in nats a song; inf: none."""

    def __post_init__(self) -> None:
        check_range(self, "diversity", "winner_error", "drift_kl", low=0, high=math.inf)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a verdict is reached by; None stands for evidence that is absent."""

    judges: Mapping[str, Effect] | None = None
    """The change of each valid judge, bigger is better."""
    band: BandChange | None = None
    diversity: Mapping[str, DiversityChange] | None = None
    """Vendi scores and distances of two songs of a prompt, by name."""
    spreads: Mapping[str, SpreadChange] | None = None
    """Of each witness within the prompt."""
    winner_error: float | None = None
    """Error of held-out winners in that of the reference."""
    has_winners: bool = False
    """Whether the objective has winners, so that their error should be there."""
    drift: Interval | None = None
    """KL divergence from the base, in nats a song."""
    lyrics: Effect | None = None
    """The change of the phoneme error rate: smaller is better."""
    has_lyrics: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a model passed, why it did not, and all numbers that this was decided by."""

    passed: bool
    reasons: tuple[str, ...]
    """A phrase for each rule that failed."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """By kind of evidence; `absent` lists the kinds that nothing was known of."""

    @property
    def text(self) -> str:
        """The verdict as a sentence, with what it knew nothing of."""
        sentence = "Passed" if self.passed else f"Not passed: {'; '.join(self.reasons)}"
        absent = self.numbers.get("absent", ())
        return sentence + (f". Not measured: {', '.join(absent)}." if absent else ".")


def reach_verdict(evidence: Evidence, limits: VerdictLimits | None = None) -> Verdict:
    """The verdict by all rules; see `Evidence` for what each needs and `VerdictLimits` for the limits."""
    limits = limits or VerdictLimits()
    checks = {
        "judges": _check_judges(evidence.judges),
        "band": _check_band(evidence.band),
        "diversity": _check_diversity(evidence.diversity, limits.diversity),
        "spreads": _check_spreads(evidence.spreads),
        "held-out winners": _check_winners(evidence, limits.winner_error),
        "drift": _check_drift(evidence.drift, limits.drift_kl),
        "lyrics": _check_lyrics(evidence),
    }
    reasons = tuple(phrase for phrases, _ in checks.values() for phrase in phrases)
    numbers: dict[str, Any] = {kind: values for kind, (_, values) in checks.items() if values}
    numbers["absent"] = [kind for kind, (_, values) in checks.items() if values is None]
    return Verdict(passed=not reasons, reasons=reasons, numbers=numbers)


Check = tuple[list[str], dict[str, Any] | None]
"""Phrases of what failed, and the numbers; None for numbers that are absent."""


def _check_judges(judges: Mapping[str, Effect] | None) -> Check:
    """A judge fell if it is lower, and its p-value, adjusted by Holm over the judges, is below 5 %."""
    if not judges:
        return ["no valid judge was scored"], None
    p_values = {axis: effect.p_value for axis, effect in judges.items()}
    p_values |= adjust_p_values({axis: p for axis, p in p_values.items() if math.isfinite(p)})
    numbers = {
        axis: {
            "change": effect.mean,
            "low": effect.low,
            "high": effect.high,
            "p_holm": p_values[axis],
            "prompts": effect.clusters,
        }
        for axis, effect in judges.items()
    }
    if (count := max(effect.clusters for effect in judges.values())) < MIN_CLUSTERS:
        return [f"judges compared on {count} prompts, and a verdict needs {MIN_CLUSTERS}"], numbers
    phrases = [
        f"the judge {axis} fell by {-effect.mean:.3g} ({-effect.high:.3g} to {-effect.low:.3g})"
        for axis, effect in judges.items()
        if effect.direction == "worse" and not p_values[axis] >= LEVEL
    ]
    return phrases, numbers


def _check_band(band: BandChange | None) -> Check:
    if band is None:
        return [], None
    numbers = {
        "base": band.base_share,
        "aligned": band.aligned_share,
        "real": band.real_share,
        "change": band.change.mean,
        "low": band.change.low,
        "high": band.change.high,
        "means_outside": list(band.witnesses_outside),
    }
    return [f"over-optimised: {phrase}" for phrase in band.reasons], numbers


def _check_diversity(diversity: Mapping[str, DiversityChange] | None, limit: float) -> Check:
    """Point values decide: a Vendi score has no interval."""
    if not diversity:
        return [], None
    numbers = {
        name: {"base": value.base, "aligned": value.aligned, "change": value.change}
        for name, value in diversity.items()
    }
    phrases = [
        f"diversity: {name} changed by {value.change:+.0%}"
        for name, value in diversity.items()
        if not value.change >= -limit
    ]
    return phrases, numbers


def _check_spreads(spreads: Mapping[str, SpreadChange] | None) -> Check:
    if not spreads:
        return [], None
    numbers = {
        axis: {
            "ratio": spread.ratio.value,
            "low": spread.ratio.low,
            "high": spread.ratio.high,
            "p_holm": spread.p_value,
        }
        for axis, spread in spreads.items()
    }
    phrases = [
        f"spread of {axis} within the prompt fell to {spread.ratio.value:.2f} "
        f"({spread.ratio.low:.2f} to {spread.ratio.high:.2f}) of the base's"
        for axis, spread in spreads.items()
        if spread.collapsed
    ]
    return phrases, numbers


def _check_winners(evidence: Evidence, limit: float) -> Check:
    if evidence.winner_error is None:
        return [], None if evidence.has_winners else {}
    phrases = []
    if not evidence.winner_error <= limit:
        phrases = [f"held-out winners' error is {evidence.winner_error:.2f} times the reference's"]
    return phrases, {"ratio": evidence.winner_error, "limit": limit}


def _check_drift(drift: Interval | None, limit: float) -> Check:
    """The point value decides: it has little noise, and an interval over few prompts is wide."""
    if drift is None:
        return [], None
    phrases = []
    if not drift.value <= limit:
        phrases = [
            f"drift of {drift.value:.3g} ({drift.low:.3g} to {drift.high:.3g}) nats a song, limit {limit:g}"
        ]
    return phrases, {"kl": drift.value, "low": drift.low, "high": drift.high, "limit": limit}


def _check_lyrics(evidence: Evidence) -> Check:
    """The phoneme error rate rose if its interval lies above zero."""
    effect = evidence.lyrics
    if effect is None:
        return [], None if evidence.has_lyrics else {}
    phrases = []
    if effect.direction == "better":  # higher, which is worse for an error
        phrases = [f"phoneme error rate rose by {effect.mean:.3g} ({effect.low:.3g} to {effect.high:.3g})"]
    return phrases, {"change": effect.mean, "low": effect.low, "high": effect.high}
