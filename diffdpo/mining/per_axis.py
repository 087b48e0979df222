"""Pairs for each axis alone, united: for models that are told which axis a song is to be good on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from diffdpo.mining.base import Mined, check_count, comparisons, keep, mine_prompts
from diffdpo.types import Candidate, Pair


@dataclass(frozen=True)
class PerAxis:
    """On each axis the pairs with the widest margin there, if no other axis loses much; the union over axes.

    With a tolerance below min_margin two songs never meet both ways round. A pair found on several axes goes to
    that with the widest margin.
    """

    min_margin: float = 0.5
    """Least margin on the pair's axis, in standard deviations within the prompt."""
    tolerance: float = 0.25
    """Greatest loss on any other axis, in the same unit; .inf lets the others do as they please."""
    pairs_per_prompt: int = 1
    """At most so many on each axis; no song is winner in one and loser in another of these."""

    def __post_init__(self) -> None:
        if not self.min_margin > 0:
            raise ValueError(f"min_margin must be positive, got {self.min_margin}: ties teach nothing")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}")
        check_count("pairs_per_prompt", self.pairs_per_prompt)

    def __call__(self, candidates: Iterable[Candidate], axes: Sequence[str]) -> Mined:
        def choose(group: Sequence[Candidate]) -> list[Pair]:
            found = [
                replace(pair, axis=axis)
                for pair in comparisons(group, axes, "per_axis")
                for axis in axes
                if pair.margins[axis] >= self.min_margin
                and all(pair.margins[other] >= -self.tolerance for other in axes if other != axis)
            ]
            return keep(found, lambda pair: pair.margins[pair.axis], self.pairs_per_prompt)

        return mine_prompts(
            candidates,
            axes,
            choose,
            otherwise="no candidate is ahead on an axis by min_margin within tolerance on the others",
        )
