"""Best of a prompt against the worst, by the mean of all axes, where none of them loses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffdpo.checks import check_range
from diffdpo.mining.base import (
    Selection,
    check_axes,
    check_weights,
    differences,
    mine_prompts,
    select,
    weighted_mean,
)
from diffdpo.mining.values import MinedPairs, PromptCandidates


@dataclass(frozen=True)
class BestVersusWorst:
    """Of each prompt the pairs with the widest mean margin, in which the winner is not worse on any axis.

    Axes are compared as z-scores within the prompt, so that no axis counts more for its scale, and prompts that
    are easy by nature win nothing. The dominance rule keeps out pairs in which one axis pays for another. With
    min_axis_margin -inf the weighted sum alone decides: the order is that of GDPO's advantages.
    """

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in the mean margin; axes not named weigh 1."""
    min_margin: float = 0.5
    """Least mean margin, in standard deviations within the prompt. Closer calls are noise."""
    min_axis_margin: float = 0.0
    """Least margin on every single axis; negative values tolerate small losses."""
    pairs_per_prompt: int = 1
    """Largest number of pairs of a prompt; no song is winner in one and loser in another."""

    def __post_init__(self) -> None:
        check_range(self, "min_margin", above=0)  # ties teach nothing
        check_range(self, "min_axis_margin", low=-math.inf)
        check_range(self, "pairs_per_prompt", low=1)
        check_weights(self.weights)

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs:
        check_axes(self.weights, axes, "best_versus_worst: weights")

        def choose(prompt: PromptCandidates) -> list[Selection]:
            margins = differences(prompt.z)
            mean = weighted_mean(margins, axes, self.weights)
            eligible = (margins.min(0) >= self.min_axis_margin) & (mean >= self.min_margin)
            return select(eligible[None], mean[None], self.pairs_per_prompt)

        return mine_prompts(
            prompts,
            axes,
            "best_versus_worst",
            choose,
            no_pair_reason="no candidate is better than another by min_margin without a loss on an axis",
        )
