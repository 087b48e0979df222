"""The union of several rules."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffdpo.mining.base import contradict
from diffdpo.mining.values import MinedPairs, Pair, PromptCandidates


@dataclass(frozen=True)
class Union:
    """The pairs of several rules. Where two find the same pair, or contradict each other, the earlier one counts.

    Contradiction is a song that is winner in one pair and loser in another on the same axis.
    """

    rules: list[Any] = field(default_factory=list)
    """Names, or {name: …, args: {…}} for those with arguments, the most trusted first."""

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs:
        pairs_of: dict[str, list[Pair]] = defaultdict(list)
        reasons = {prompt.prompt_id: "no rule is asked" for prompt in prompts}
        for result in [rule(prompts, axes) for rule in self.rules]:
            reasons |= result.reasons
            for pair in result.pairs:
                pairs = pairs_of[pair.prompt_id]
                if not any(contradict(pair, earlier) for earlier in pairs):
                    pairs.append(pair)
        return MinedPairs(
            tuple(pair for _, pairs in sorted(pairs_of.items()) for pair in pairs),
            {prompt: reason for prompt, reason in sorted(reasons.items()) if prompt not in pairs_of},
        )
