"""Configuration of a search: what is looked for, how, and at which cost."""

from dataclasses import dataclass, field

from diffdpo.checks import check_range
from diffdpo.registry import Choice
from diffdpo.search.reward import RewardConfig


@dataclass(frozen=True)
class SearchConfig:
    """A search for the best songs of each prompt."""

    method: Choice = field(default_factory=lambda: Choice("best_of_n"))
    """best_of_n, or another by name with its arguments; docs/howto/search.md says which to use when."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What is looked for: axes by weight, and constraints."""
    budget: float = 8.0
    """Cost of a prompt, in songs' worth of network evaluations: 8 is what eight plain songs of it take. A method
    does what it can within it."""
    winners: int = 1
    """Songs of each prompt that are the search's answer: the best, the second best, …"""

    def __post_init__(self) -> None:
        check_range(self, "budget", "winners", low=1, prefix="search.")
