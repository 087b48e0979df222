"""Ratings of single songs from their scores, for objectives that need no pairs."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from diffdpo.mining.base import check_axes
from diffdpo.mining.values import PromptCandidates


def advantages(
    prompts: Iterable[PromptCandidates],
    axes: Sequence[str],
    weights: Mapping[str, float],
    *,
    rescale: bool = True,
) -> dict[str, float]:
    """The advantage of each song over the others of its prompt, by sample id (GDPO, arXiv 2601.05242).

    Each axis is normalised within the prompt before the weighted sum, A = Σ w z. Normalising the sum instead, as
    GRPO does, lets the axis with the widest scale rule, and maps different merits to one number. `rescale` divides
    all by their standard deviation, the paper's normalisation over the batch, so that the size does not grow with
    the number of axes; the mean is 0 within each prompt already. Candidates without a score on every axis, and
    prompts with a single one, have no advantage.

    A song whose axes cancel has the advantage 0, not the sign of a rounding.

    The mean margin of `best_versus_worst` is the difference of two of these sums over the sum of the weights.
    """
    check_axes(weights, axes, "weights")
    weight = np.array([weights.get(axis, 1.0) for axis in axes])
    sums: dict[str, float] = {}
    for prompt in prompts:
        if len(prompt.sample_ids) > 1:
            tolerance = float(weight @ _rounding(prompt))
            for name, merits in zip(prompt.sample_ids, (weight * prompt.z).tolist(), strict=True):
                total = math.fsum(merits)
                sums[name] = total if abs(total) > tolerance else 0.0  # axes that cancel: no like by rounding
    spread = math.sqrt(math.fsum(a**2 for a in sums.values()) / max(1, len(sums)))
    scale = spread if rescale and spread > 0 else 1.0
    return {name: value / scale for name, value in sums.items()}


def _rounding(prompt: PromptCandidates) -> Float[np.ndarray, " axis"]:
    """By how much rounding may move z on each axis: more, the farther the scores lie from 0 for their spread."""
    spread = prompt.scores.std(0)
    size = np.abs(prompt.scores).max(0)
    relative = np.divide(size, spread, out=np.zeros_like(size), where=spread > 0)
    return 1e-9 + 8 * np.finfo(np.float64).eps * relative
