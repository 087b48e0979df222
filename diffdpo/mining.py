"""From scores to preference pairs. Pure functions: the same candidates give the same pairs in any order."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Protocol, runtime_checkable

from diffdpo.types import Candidate, Pair


@dataclass(frozen=True)
class Mined:
    """The pairs, and for every prompt without one the reason."""

    pairs: tuple[Pair, ...]
    skipped: Mapping[str, str]


@runtime_checkable
class Rule(Protocol):
    """A frozen dataclass whose fields are its thresholds and whose call is a pure function."""

    def __call__(self, candidates: Iterable[Candidate], axes: Sequence[str]) -> Mined: ...


@dataclass(frozen=True)
class BestVersusWorst:
    """Of each prompt the pairs with the widest mean margin, in which the winner is not worse on any axis.

    Axes are compared as z-scores within the prompt, so that no axis counts more for its scale, and prompts that
    are easy by nature win nothing. The dominance rule keeps out pairs in which one axis pays for another.
    """

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in the mean margin; axes not named weigh 1."""
    min_margin: float = 0.5
    """Least mean margin, in standard deviations within the prompt. Closer calls are noise."""
    min_axis_margin: float = 0.0
    """Least margin on every single axis; negative values tolerate small losses."""
    pairs_per_prompt: int = 1
    """At most so many; no song is winner in one and loser in another."""

    def __post_init__(self) -> None:
        if self.min_margin <= 0:
            raise ValueError(f"min_margin must be positive, got {self.min_margin}: ties teach nothing")
        if self.pairs_per_prompt < 1:
            raise ValueError(f"pairs_per_prompt must be at least 1, got {self.pairs_per_prompt}")
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights must not be negative: bigger is better on every axis")

    def __call__(self, candidates: Iterable[Candidate], axes: Sequence[str]) -> Mined:
        pairs: list[Pair] = []
        skipped: dict[str, str] = {}
        groups = by_prompt(candidates)
        for prompt_id in sorted(groups):
            found, reason = self._of_prompt(groups[prompt_id], axes)
            pairs.extend(found)
            if reason:
                skipped[prompt_id] = reason
        return Mined(tuple(pairs), skipped)

    def _of_prompt(self, group: Sequence[Candidate], axes: Sequence[str]) -> tuple[list[Pair], str]:
        usable = [c for c in group if all(math.isfinite(c.scores.get(axis, math.nan)) for axis in axes)]
        if len(usable) < 2:
            return [], f"{len(usable)} candidate(s) with a score on every axis, {len(group)} in all"
        scores = z_scores(usable, axes)
        if all(value == 0 for z in scores.values() for value in z.values()):
            return [], "all candidates are tied on every axis"
        ranked = sorted(
            (
                (self._mean(margins), winner, loser, margins)
                for winner, loser in permutations(usable, 2)
                if min((margins := _margins(scores, winner, loser)).values()) >= self.min_axis_margin
            ),
            key=lambda item: (-item[0], item[1].sample_id, item[2].sample_id),
        )
        kept: list[Pair] = []
        for mean, winner, loser, margins in ranked:
            if mean < self.min_margin or len(kept) == self.pairs_per_prompt:
                break
            if any(winner.sample_id == p.loser or loser.sample_id == p.winner for p in kept):
                continue
            kept.append(
                Pair(
                    prompt_id=winner.prompt_id,
                    group=winner.group,
                    winner=winner.sample_id,
                    loser=loser.sample_id,
                    rule="best_versus_worst",
                    margins=margins,
                )
            )
        return (
            kept,
            "" if kept else "no candidate is better than another by min_margin without a loss on an axis",
        )

    def _mean(self, margins: Mapping[str, float]) -> float:
        weights = {axis: self.weights.get(axis, 1.0) for axis in margins}
        return sum(weights[axis] * margins[axis] for axis in margins) / max(1e-9, sum(weights.values()))


RULES: dict[str, type] = {
    "best_versus_worst": BestVersusWorst,
}


def by_prompt(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates of each prompt, ordered by id, so that no result depends on the order they came in."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda c: c.sample_id):
        groups[candidate.prompt_id].append(candidate)
    return dict(groups)


def z_scores(group: Sequence[Candidate], axes: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each sample its scores in standard deviations from the mean of its prompt; 0 on an axis of ties."""
    z: dict[str, dict[str, float]] = {candidate.sample_id: {} for candidate in group}
    for axis in axes:
        values = [candidate.scores[axis] for candidate in group]
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        tied = std <= 1e-9 * max(1.0, abs(mean))
        for candidate, value in zip(group, values, strict=True):
            z[candidate.sample_id][axis] = 0.0 if tied else (value - mean) / std
    return z


def _margins(
    scores: Mapping[str, Mapping[str, float]], winner: Candidate, loser: Candidate
) -> dict[str, float]:
    better, worse = scores[winner.sample_id], scores[loser.sample_id]
    return {axis: better[axis] - worse[axis] for axis in better}
