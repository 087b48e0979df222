"""Cross-pair preferences (CPPO of DiffRhythm 2, arXiv 2510.22950): winners that are good on two axes at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from diffdpo.checks import check_range
from diffdpo.mining.base import (
    Selection,
    check_axes,
    differences,
    mine_prompts,
    select,
)
from diffdpo.mining.values import MinedPairs, PromptCandidates


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
    """Quantile of all candidates from which on a score satisfies its axis."""
    min_margin: float = 0.25
    """Least mean margin on the couple, in standard deviations within the prompt."""
    pairs_per_prompt: int = 2
    """Largest number of pairs of a prompt over all couples; no song is winner in one and loser in another."""

    def __post_init__(self) -> None:
        if any(len(set(couple)) != 2 or len(couple) != 2 for couple in self.couples):
            raise ValueError(f"couples must each name two different axes, got {self.couples}")
        check_range(self, "quantile", above=0, below=1)
        check_range(self, "min_margin", above=0)  # ties teach nothing
        check_range(self, "pairs_per_prompt", low=1)

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs:
        check_axes([axis for couple in self.couples for axis in couple], axes, "cross_pair: couples")
        names = self.couples or [list(couple) for couple in combinations(axes, 2)]
        couples = np.array([[axes.index(axis) for axis in couple] for couple in names], int).reshape(-1, 2)
        scores = (
            np.concatenate([prompt.scores for prompt in prompts]) if prompts else np.zeros((0, len(axes)))
        )
        thresholds = np.array(
            [np.quantile(column, self.quantile) if len(scores) else 0.0 for column in scores.T]
        )

        def choose(prompt: PromptCandidates) -> list[Selection]:
            first, second = differences(prompt.z)[couples].swapaxes(0, 1)
            means = (first + second) / 2
            eligible = self._holds(prompt.scores, couples, thresholds) & (means >= self.min_margin)
            widest = np.where(eligible, means, -np.inf).max(0, initial=-np.inf)
            return select(eligible.any(0)[None], widest[None], self.pairs_per_prompt)

        return mine_prompts(
            prompts,
            axes,
            "cross_pair",
            choose,
            no_pair_reason="no candidate is good on both axes of a couple while another is not",
        )

    def _holds(
        self,
        scores: Float[np.ndarray, "candidate axis"],
        couples: Int[np.ndarray, "couple 2"],
        thresholds: Float[np.ndarray, " axis"],
    ) -> Bool[np.ndarray, "couple winner loser"]:
        """Whether two candidates meet the condition of the option `loser` on a couple of axes."""
        if self.loser == "worse":
            return np.all((differences(scores) > 0)[couples], axis=1)
        satisfies = (scores >= thresholds).T[couples]
        satisfies_both, satisfies_none = np.all(satisfies, axis=1), ~np.any(satisfies, axis=1)
        return (
            satisfies_both[:, :, None]
            & (~satisfies_both if self.loser == "fails_one" else satisfies_none)[:, None]
        )
