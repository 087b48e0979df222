"""What a mining rule is, and what all rules share: prompts, scales, comparisons, and which of them to keep."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol, runtime_checkable

from diffdpo.errors import ConfigError
from diffdpo.registry import closest
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


def mine_prompts(
    candidates: Iterable[Candidate],
    axes: Sequence[str],
    choose: Callable[[Sequence[Candidate]], Sequence[Pair]],
    *,
    otherwise: str,
) -> Mined:
    """What `choose` finds in each prompt with two candidates and more that differ; `otherwise` says what was not.

    `choose` sees only candidates that have a score on every axis.
    """
    pairs: list[Pair] = []
    skipped: dict[str, str] = {}
    for prompt_id, group in sorted(by_prompt(candidates).items()):
        scored = usable(group, axes)
        if len(scored) < 2:
            reason = f"{len(scored)} candidate(s) with a score on every axis, {len(group)} in all"
        elif not any(value for z in z_scores(scored, axes).values() for value in z.values()):
            reason = "all candidates are tied on every axis"
        else:
            found, reason = choose(scored), otherwise
            pairs.extend(found)
            if found:
                continue
        skipped[prompt_id] = reason
    return Mined(tuple(pairs), skipped)


def by_prompt(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates of each prompt, ordered by id, so that no result depends on the order they came in."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda c: c.sample_id):
        groups[candidate.prompt_id].append(candidate)
    return dict(groups)


def usable(group: Iterable[Candidate], axes: Sequence[str]) -> list[Candidate]:
    """Those with a number on every axis."""
    return [c for c in group if all(math.isfinite(c.scores.get(axis, math.nan)) for axis in axes)]


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


def comparisons(group: Sequence[Candidate], axes: Sequence[str], rule: str) -> list[Pair]:
    """Every two candidates of a prompt, each way round, with their margins; a rule picks from these."""
    scores = z_scores(group, axes)
    return [
        Pair(
            prompt_id=winner.prompt_id,
            group=winner.group,
            winner=winner.sample_id,
            loser=loser.sample_id,
            rule=rule,
            margins={axis: scores[winner.sample_id][axis] - scores[loser.sample_id][axis] for axis in axes},
        )
        for winner, loser in permutations(group, 2)
    ]


def keep(pairs: Iterable[Pair], strength: Callable[[Pair], float], limit: int) -> list[Pair]:
    """The strongest pairs, at most `limit` on each axis, that do not contradict each other; ties go by id."""
    kept: list[Pair] = []
    count: Counter[str] = Counter()
    for pair in sorted(pairs, key=lambda p: (-strength(p), p.axis, p.winner, p.loser)):
        if count[pair.axis] < limit and not any(clash(pair, other) for other in kept):
            kept.append(pair)
            count[pair.axis] += 1
    return kept


def clash(one: Pair, two: Pair) -> bool:
    """The same two songs the same way round, or a song that wins in one and loses in the other, on one axis."""
    if (one.winner, one.loser) == (two.winner, two.loser):
        return True
    return one.axis == two.axis and (one.winner == two.loser or one.loser == two.winner)


def mean_margin(margins: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean over the axes; axes without a weight count 1."""
    weight = {axis: weights.get(axis, 1.0) for axis in margins}
    return sum(weight[axis] * margins[axis] for axis in margins) / max(1e-9, sum(weight.values()))


def check_axes(named: Iterable[str], axes: Collection[str], where: str) -> None:
    """ConfigError when an axis is named that is not mined."""
    for axis in named:
        if axis not in axes:
            raise ConfigError(
                f"{where}: {axis!r} is not among the mined axes.{closest(axis, axes)} "
                f"Mined: {', '.join(axes)}."
            )


def check_weights(weights: Mapping[str, float]) -> None:
    """ValueError for weights that are negative or not numbers."""
    if not all(weight >= 0 for weight in weights.values()):
        raise ValueError(f"weights must not be negative, got {dict(weights)}: bigger is better on every axis")


def check_count(name: str, value: int) -> None:
    """ValueError for a limit below one."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
