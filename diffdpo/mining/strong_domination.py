"""Strong domination (MRSD of MR-FlowDPO, arXiv 2512.10264): far ahead on one axis, clearly ahead on all others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from diffdpo.mining.base import (
    Mined,
    by_prompt,
    check_axes,
    check_count,
    comparisons,
    keep,
    mine_prompts,
    usable,
)
from diffdpo.types import Candidate, Pair


@dataclass(frozen=True)
class StrongDomination:
    """Pairs whose winner is far ahead on a primary axis and clearly ahead on all others, for each primary axis.

    With r the raw scores and Δ all their absolute differences within prompts, over all candidates given: on the
    primary axis p, r_p(w) - r_p(l) >= P95(Δ_p), and on every other axis q, r_q(w) - r_q(l) >= P50(Δ_q). The
    pairs of all primary axes are united; one found on several goes to that with the widest margin.
    """

    primary: list[str] = field(default_factory=list)
    """Axes to mine pairs on; empty: each in turn."""
    primary_percentile: float = 95.0
    """Of the differences on the primary axis."""
    other_percentile: float = 50.0
    """Of the differences on each other axis."""
    pairs_per_prompt: int = 8
    """At most so many on each primary axis; no song is winner in one and loser in another of these."""

    def __post_init__(self) -> None:
        for name in ("primary_percentile", "other_percentile"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} must be in [0, 100], got {getattr(self, name)}")
        check_count("pairs_per_prompt", self.pairs_per_prompt)

    def __call__(self, candidates: Iterable[Candidate], axes: Sequence[str]) -> Mined:
        check_axes(self.primary, axes, "strong_domination: primary")
        candidates = list(candidates)
        gaps = differences(candidates, axes)
        far = {axis: _percentile(gaps[axis], self.primary_percentile) for axis in axes}
        clear = {axis: _percentile(gaps[axis], self.other_percentile) for axis in axes}

        def choose(group: Sequence[Candidate]) -> list[Pair]:
            scores = {c.sample_id: c.scores for c in group}
            found: list[Pair] = []
            for pair in comparisons(group, axes, "strong_domination"):
                lead = {axis: scores[pair.winner][axis] - scores[pair.loser][axis] for axis in axes}
                for axis in self.primary or axes:
                    others = all(lead[other] >= clear[other] for other in axes if other != axis)
                    if others and lead[axis] >= far[axis] and pair.margins[axis] > 0:
                        found.append(replace(pair, axis=axis))
            return keep(found, lambda pair: pair.margins[pair.axis], self.pairs_per_prompt)

        return mine_prompts(
            candidates,
            axes,
            choose,
            otherwise="no candidate strongly dominates another",
        )


def differences(candidates: Iterable[Candidate], axes: Sequence[str]) -> dict[str, list[float]]:
    """On each axis the absolute differences between every two candidates of a prompt, over all prompts."""
    groups = [usable(group, axes) for group in by_prompt(candidates).values()]
    return {
        axis: [
            abs(one.scores[axis] - two.scores[axis])
            for group in groups
            for one, two in combinations(group, 2)
        ]
        for axis in axes
    }


def _percentile(values: Sequence[float], q: float) -> float:
    return float(np.percentile(values, q)) if values else 0.0
