"""Cross-pair preferences (CPPO of DiffRhythm 2, arXiv 2510.22950): winners that are good on two axes at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from diffdpo.mining.base import Mined, check_axes, check_count, comparisons, keep, mine_prompts, usable
from diffdpo.types import Candidate, Pair

Scores = Mapping[str, float]


@dataclass(frozen=True)
class CrossPair:
    """For each couple of axes the pairs whose winner is good on both, so that one is not bought with the other.

    How the loser is chosen differs between accounts of the method, so it is an option. A song *satisfies* an axis
    when its score is at or above the `quantile` of all candidates given:

        worse        the winner is better than the loser on both axes; nothing need be satisfied
        fails_one    the winner satisfies both axes, the loser misses at least one of them
        fails_both   the winner satisfies both axes, the loser neither

    Axes outside the couple do not count. Pairs are ranked by the mean margin on their couple.
    """

    couples: list[list[str]] = field(default_factory=list)
    """Such as [[musicality, lyrics], [style, quality]]; empty: every two of the mined axes."""
    loser: Literal["worse", "fails_one", "fails_both"] = "worse"
    quantile: float = 0.5
    """Share of all candidates that lie below a satisfied axis."""
    min_margin: float = 0.25
    """Least mean margin on the couple, in standard deviations within the prompt."""
    pairs_per_prompt: int = 2
    """At most so many of all couples together; no song is winner in one and loser in another."""

    def __post_init__(self) -> None:
        if any(len(set(couple)) != 2 or len(couple) != 2 for couple in self.couples):
            raise ValueError(f"couples must each name two different axes, got {self.couples}")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {self.quantile}")
        if not self.min_margin > 0:
            raise ValueError(f"min_margin must be positive, got {self.min_margin}: ties teach nothing")
        check_count("pairs_per_prompt", self.pairs_per_prompt)

    def __call__(self, candidates: Iterable[Candidate], axes: Sequence[str]) -> Mined:
        check_axes([axis for couple in self.couples for axis in couple], axes, "cross_pair: couples")
        candidates = list(candidates)
        couples = [tuple(couple) for couple in self.couples] or list(combinations(axes, 2))
        scored = usable(candidates, axes)
        bar = {
            axis: float(np.quantile([c.scores[axis] for c in scored], self.quantile)) if scored else 0.0
            for axis in axes
        }

        def choose(group: Sequence[Candidate]) -> list[Pair]:
            scores = {c.sample_id: c.scores for c in group}
            widest: dict[tuple[str, str], float] = {}
            found: dict[tuple[str, str], Pair] = {}
            for pair in comparisons(group, axes, "cross_pair"):
                means = [
                    mean
                    for couple in couples
                    if self._holds(scores[pair.winner], scores[pair.loser], couple, bar)
                    and (mean := sum(pair.margins[axis] for axis in couple) / 2) >= self.min_margin
                ]
                if means:
                    found[pair.winner, pair.loser] = pair
                    widest[pair.winner, pair.loser] = max(means)
            return keep(found.values(), lambda p: widest[p.winner, p.loser], self.pairs_per_prompt)

        return mine_prompts(
            candidates,
            axes,
            choose,
            otherwise="no candidate is good on both axes of a couple while another is not",
        )

    def _holds(self, winner: Scores, loser: Scores, couple: Sequence[str], bar: Scores) -> bool:
        if self.loser == "worse":
            return all(winner[axis] > loser[axis] for axis in couple)
        missed: Callable[[Iterable[bool]], bool] = any if self.loser == "fails_one" else all
        return all(winner[axis] >= bar[axis] for axis in couple) and missed(
            loser[axis] < bar[axis] for axis in couple
        )
