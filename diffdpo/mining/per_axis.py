"""Pairs for each axis alone, united: for models that are told which axis a song is to be good on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffdpo.checks import check_range
from diffdpo.mining.base import (
    Selection,
    differences,
    hold_on_other_axes,
    mine_prompts,
    select,
)
from diffdpo.mining.values import MinedPairs, PromptCandidates


@dataclass(frozen=True)
class PerAxis:
    """On each axis the pairs with the widest margin there, if no other axis loses much; the union over axes.

    With a tolerance below min_margin two songs never meet both ways round. A pair found on several axes goes to
    that with the widest margin.
    """

    min_margin: float = 0.5
    """Least margin on the pair's axis, in standard deviations within the prompt."""
    tolerance: float = 0.25
    """Greatest loss on any other axis, in the same unit; .inf allows any."""
    pairs_per_prompt: int = 1
    """Largest number of pairs of a prompt on each axis; no song is winner in one and loser in another of these."""

    def __post_init__(self) -> None:
        check_range(self, "min_margin", above=0)  # ties teach nothing
        check_range(self, "tolerance", low=0, high=math.inf)
        check_range(self, "pairs_per_prompt", low=1)

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs:
        def choose(prompt: PromptCandidates) -> list[Selection]:
            margins = differences(prompt.z)
            eligible = (margins >= self.min_margin) & hold_on_other_axes(margins >= -self.tolerance)
            return select(eligible, margins, self.pairs_per_prompt, axes)

        return mine_prompts(
            prompts,
            axes,
            "per_axis",
            choose,
            no_pair_reason="no candidate is ahead on an axis by min_margin within tolerance on the others",
        )
