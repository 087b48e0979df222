"""Several rules at once."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffdpo.mining.base import Mined, clash
from diffdpo.types import Candidate, Pair


@dataclass(frozen=True)
class Union:
    """The pairs of several rules. Where two find the same pair, or contradict each other, the earlier one counts.

    Contradiction is a song that is winner in one pair and loser in another on the same axis.
    """

    rules: list[Any] = field(default_factory=list)
    """Names, or {name: …, args: {…}} for those with arguments, the most trusted first."""

    def __call__(self, candidates: Iterable[Candidate], axes: Sequence[str]) -> Mined:
        candidates = list(candidates)
        kept: dict[str, list[Pair]] = defaultdict(list)
        reasons: dict[str, str] = {c.prompt_id: "no rule is asked" for c in candidates}
        for mined in [rule(candidates, axes) for rule in self.rules]:
            reasons |= mined.skipped
            for pair in mined.pairs:
                of_prompt = kept[pair.prompt_id]
                if not any(clash(pair, other) for other in of_prompt):
                    of_prompt.append(pair)
        return Mined(
            tuple(pair for _, pairs in sorted(kept.items()) for pair in pairs),
            {prompt: reason for prompt, reason in sorted(reasons.items()) if prompt not in kept},
        )
