"""Strong domination (MRSD of MR-FlowDPO, arXiv 2512.10264): far ahead on one axis, clearly ahead on all others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range
from diffdpo.mining.base import (
    Selection,
    check_axes,
    differences,
    hold_on_other_axes,
    mine_prompts,
    select,
)
from diffdpo.mining.values import MinedPairs, PromptCandidates


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
    """Percentile of the differences on the primary axis that the winner's lead must reach."""
    other_percentile: float = 50.0
    """Percentile of the differences on each other axis that the winner's lead must reach."""
    pairs_per_prompt: int = 8
    """Largest number of pairs of a prompt on each primary axis; no song is winner in one and loser
    in another of these."""

    def __post_init__(self) -> None:
        check_range(self, "primary_percentile", "other_percentile", low=0, high=100)
        check_range(self, "pairs_per_prompt", low=1)

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs:
        check_axes(self.primary, axes, "strong_domination: primary")
        gaps = distances(prompts, len(axes))
        primary_threshold, other_threshold = (
            _percentiles(gaps, q)[:, None, None] for q in (self.primary_percentile, self.other_percentile)
        )
        primary = np.array([axis in (self.primary or axes) for axis in axes])[:, None, None]

        def choose(prompt: PromptCandidates) -> list[Selection]:
            leads, margins = differences(prompt.scores), differences(prompt.z)
            eligible = (
                primary
                & (leads >= primary_threshold)
                & (margins > 0)
                & hold_on_other_axes(leads >= other_threshold)
            )
            return select(eligible, margins, self.pairs_per_prompt, axes)

        return mine_prompts(
            prompts,
            axes,
            "strong_domination",
            choose,
            no_pair_reason="no candidate strongly dominates another",
        )


def distances(prompts: Iterable[PromptCandidates], axes: int) -> Float[np.ndarray, "comparison {axes}"]:
    """The absolute differences of score between every two candidates of a prompt, over all prompts."""
    empty = [np.zeros((0, axes))]
    return np.concatenate(empty + [_distances(prompt.scores) for prompt in prompts])


def _distances(scores: Float[np.ndarray, "candidate axis"]) -> Float[np.ndarray, "comparison axis"]:
    first, second = np.triu_indices(len(scores), 1)
    return np.abs(scores[first] - scores[second])


def _percentiles(values: Float[np.ndarray, "comparison axis"], q: float) -> Float[np.ndarray, " axis"]:
    """The percentile q of each column; 0 without values."""
    return np.array([np.percentile(column, q) if len(column) else 0.0 for column in values.T])
