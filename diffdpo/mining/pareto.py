"""Pareto fronts of calibrated scores (CaPO, arXiv 2502.02588): winners nobody beats on all axes at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

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

TANH = np.frompyfunc(math.tanh, 1, 1)
"""tanh of the C library: the last bits of numpy's depend on the processor."""


@dataclass(frozen=True)
class Pareto:
    """Winners from the front that no song of the prompt dominates, losers from behind it, widest win rates first.

    A score is calibrated to the win rate against the prompt's other candidates: the mean of σ((z - z')/temperature)
    over them (Bradley-Terry), or with temperature 0 the share of them that is beaten, ties counted half. One song
    dominates another if it is at least as good on every axis and better on one.
    """

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis in the mean win rate; axes not named weigh 1."""
    temperature: float = 1.0
    """Temperature of the win rates, in standard deviations within the prompt; 0 counts wins."""
    losers: Literal["last_front", "dominated"] = "last_front"
    """The front that is left when all better ones are taken away, or every song outside the first."""
    strict: bool = False
    """Whether the winner must dominate its loser; if not, the winner may be worse on an axis, not in the mean."""
    min_gap: float = 0.1
    """Least difference of the mean win rates."""
    pairs_per_prompt: int = 1
    """Largest number of pairs of a prompt; no song is winner in one and loser in another."""

    def __post_init__(self) -> None:
        check_range(self, "temperature", low=0)
        check_range(self, "min_gap", above=0, below=1)
        check_range(self, "pairs_per_prompt", low=1)
        check_weights(self.weights)

    def __call__(self, prompts: Sequence[PromptCandidates], axes: Sequence[str]) -> MinedPairs:
        check_axes(self.weights, axes, "pareto: weights")

        def choose(prompt: PromptCandidates) -> list[Selection]:
            mean = weighted_mean(win_rates(prompt.z, self.temperature), axes, self.weights)
            gap = mean[:, None] - mean[None]
            rank = fronts(prompt.scores)
            loser_mask = rank > 0 if self.losers == "dominated" else (rank == rank.max()) & (rank > 0)
            eligible = (rank == 0)[:, None] & loser_mask[None] & (gap >= self.min_gap)
            if self.strict:
                eligible &= differences(prompt.z).min(0) >= 0
            return select(eligible[None], gap[None], self.pairs_per_prompt)

        return mine_prompts(
            prompts,
            axes,
            "pareto",
            choose,
            no_pair_reason="no candidate of the first front is ahead of one behind it by min_gap",
        )


def win_rates(
    z: Float[np.ndarray, "candidate axis"], temperature: float
) -> Float[np.ndarray, "axis candidate"]:
    """How often each candidate wins on each axis against the others, in [0, 1]. Needs two candidates."""
    leads = differences(z)
    if temperature == 0:
        wins = np.where(leads == 0, 0.5, leads > 0)
    else:
        wins = 0.5 * (1 + np.asarray(TANH(leads / temperature / 2), np.float64))
    wins[:, np.eye(len(z), dtype=bool)] = 0  # no candidate is compared with itself
    rows = wins.reshape(-1, len(z)).tolist()
    return np.array([math.fsum(row) / (len(z) - 1) for row in rows]).reshape(wins.shape[:2])


def fronts(scores: Float[np.ndarray, "candidate axis"]) -> Int[np.ndarray, " candidate"]:
    """The number of each candidate's front: 0 if nobody dominates it, 1 if only those of front 0 do, and so on."""
    dominant = dominates(scores)
    ranks, unranked_mask, rank = np.zeros(len(scores), np.int64), np.ones(len(scores), bool), 0
    while unranked_mask.any():
        front = unranked_mask & ~dominant[unranked_mask].any(0)
        ranks[front] = rank
        unranked_mask &= ~front
        rank += 1
    return ranks


def dominates(scores: Float[np.ndarray, "candidate axis"]) -> Bool[np.ndarray, "winner loser"]:
    """Whether one candidate is at least as good as another on every axis, and better on one."""
    leads = differences(scores)
    return np.all(leads >= 0, axis=0) & np.any(leads > 0, axis=0)
