"""Pareto fronts of calibrated scores (CaPO, arXiv 2502.02588): winners nobody beats on all axes at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from diffdpo.mining.base import (
    Mined,
    check_axes,
    check_count,
    check_weights,
    comparisons,
    keep,
    mean_margin,
    mine_prompts,
    z_scores,
)
from diffdpo.types import Candidate, Pair

Rates = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Pareto:
    """Winners from the front that no song of the prompt dominates, losers from behind it, widest win rates first.

    A score is calibrated to the win rate against the prompt's other candidates: the mean of σ((z - z')/temperature)
    over them (Bradley-Terry), or with temperature 0 the share of them that is beaten, ties counted half. One song
    dominates another if it is at least as good on every axis and better on one.
    """

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in the mean win rate; axes not named weigh 1."""
    temperature: float = 1.0
    """In standard deviations within the prompt; 0 counts wins."""
    losers: Literal["last_front", "dominated"] = "last_front"
    """The front that is left when all better ones are taken away, or every song outside the first."""
    strict: bool = False
    """The winner must dominate its very loser; else it may be worse on an axis, though not in the mean."""
    min_gap: float = 0.1
    """Least difference of the mean win rates."""
    pairs_per_prompt: int = 1

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.min_gap < 1:
            raise ValueError(f"min_gap must be between 0 and 1, got {self.min_gap}")
        check_count("pairs_per_prompt", self.pairs_per_prompt)
        check_weights(self.weights)

    def __call__(self, candidates: Iterable[Candidate], axes: Sequence[str]) -> Mined:
        check_axes(self.weights, axes, "pareto: weights")

        def choose(group: Sequence[Candidate]) -> list[Pair]:
            rates = win_rates(z_scores(group, axes), self.temperature)
            ranks = fronts({c.sample_id: c.scores for c in group}, axes)
            last = max(ranks.values())
            gap = {name: mean_margin(rate, self.weights) for name, rate in rates.items()}
            found = [
                pair
                for pair in comparisons(group, axes, "pareto")
                if ranks[pair.winner] == 0 < ranks[pair.loser]
                and (ranks[pair.loser] == last or self.losers == "dominated")
                and (min(pair.margins.values()) >= 0 or not self.strict)
                and gap[pair.winner] - gap[pair.loser] >= self.min_gap
            ]
            return keep(found, lambda pair: gap[pair.winner] - gap[pair.loser], self.pairs_per_prompt)

        return mine_prompts(
            candidates,
            axes,
            choose,
            otherwise="no candidate of the first front is ahead of one behind it by min_gap",
        )


def win_rates(z: Rates, temperature: float) -> dict[str, dict[str, float]]:
    """For each song and axis how often it wins against the others, in [0, 1]. Needs two songs."""
    rates: dict[str, dict[str, float]] = {name: {} for name in z}
    for name, own in z.items():
        for axis, value in own.items():
            leads = [value - others[axis] for other, others in z.items() if other != name]
            rates[name][axis] = math.fsum(_win(lead, temperature) for lead in leads) / len(leads)
    return rates


def fronts(scores: Mapping[str, Mapping[str, float]], axes: Sequence[str]) -> dict[str, int]:
    """The number of each song's front: 0 if no song dominates it, 1 if only songs of front 0 do, and so on."""
    left = set(scores)
    ranks: dict[str, int] = {}
    rank = 0
    while left:
        front = {
            name for name in left if not any(dominates(scores[other], scores[name], axes) for other in left)
        }
        ranks |= dict.fromkeys(front, rank)
        left -= front
        rank += 1
    return ranks


def dominates(one: Mapping[str, float], two: Mapping[str, float], axes: Sequence[str]) -> bool:
    """At least as good on every axis, better on one."""
    return all(one[axis] >= two[axis] for axis in axes) and any(one[axis] > two[axis] for axis in axes)


def _win(lead: float, temperature: float) -> float:
    if temperature == 0:
        return 0.5 if lead == 0 else float(lead > 0)
    return 0.5 * (1 + math.tanh(lead / temperature / 2))
