"""Songs of a data set against the model's own answers to their captions (Diffusion-SPIN)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError
from diffdpo.mining.base import Rule, check_axes, check_weights, weighted_mean
from diffdpo.mining.union import Union
from diffdpo.mining.values import MinedPairs, Pair, PromptCandidates


@dataclass(frozen=True)
class RealVersusSample:
    """The song of a data set wins over the model's answers to its caption; who wins needs no score.

    Diffusion-SPIN (Yuan et al. 2024, arXiv 2402.10210): with DPO and the model that answered as the reference, it
    is that paper's loss, and rounds are its iterations. Where the answers have scores on the mined axes, only
    answers with a score on every axis lose. Margins are empty: a song of the data set is not compared by scores.
    """

    losers: Literal["any", "worst"] = "any"
    """Which answers lose: any, in the order of their numbers (their noise is random), or those with the lowest
    weighted mean of the scores."""
    pairs_per_prompt: int = 1
    """Largest number of answers that one song wins over."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in the mean by which the worst answers are found; axes not named weigh 1."""

    def __post_init__(self) -> None:
        check_range(self, "pairs_per_prompt", low=1)
        check_weights(self.weights)

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs:
        check_axes(self.weights, axes, "real_versus_sample: weights")
        if self.losers == "worst" and not axes:
            raise ConfigError("real_versus_sample: losers=worst needs scores of the answers; set scores=…")
        pairs: list[Pair] = []
        reasons: dict[str, str] = {}
        for prompt in prompts:
            if not prompt.song:
                reasons[prompt.prompt_id] = "no song of the data set has this caption"
            elif not prompt.sample_ids:
                reasons[prompt.prompt_id] = f"0 answers with a score on every axis, {prompt.count} in all"
            else:
                pairs.extend(_real_pair(prompt, loser) for loser in self._losers(prompt, axes))
        return MinedPairs(tuple(pairs), reasons)

    def _losers(self, prompt: PromptCandidates, axes: Sequence[str]) -> list[str]:
        """Ids of the answers that lose, the first of equal ones by id."""
        places = list(range(len(prompt.sample_ids)))
        if self.losers == "worst":
            means = weighted_mean(np.ascontiguousarray(prompt.z.T), axes, self.weights).tolist()
            places.sort(key=means.__getitem__)
        return [prompt.sample_ids[place] for place in places[: self.pairs_per_prompt]]


def uses_real_songs(rule: Rule) -> bool:
    """Whether a rule pairs songs of a data set; a union does if one of its rules does."""
    if isinstance(rule, Union):
        return any(uses_real_songs(member) for member in rule.rules)
    return isinstance(rule, RealVersusSample)


def _real_pair(prompt: PromptCandidates, loser: str) -> Pair:
    return Pair(
        prompt_id=prompt.prompt_id,
        group=prompt.group,
        winner=prompt.song,
        loser=loser,
        rule="real_versus_sample",
        margins={},
        is_real=True,
    )
