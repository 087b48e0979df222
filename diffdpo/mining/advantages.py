"""Ratings of single songs from their scores, for objectives that need no pairs."""

import math
from collections.abc import Iterable, Mapping, Sequence

from diffdpo.mining.base import by_prompt, check_axes, usable, z_scores
from diffdpo.types import Candidate


def advantages(
    candidates: Iterable[Candidate],
    axes: Sequence[str],
    weights: Mapping[str, float],
    *,
    rescale: bool = True,
) -> dict[str, float]:
    """GDPO (arXiv 2601.05242): each axis is normalised within the prompt before the weighted sum, A = Σ w z.

    Normalising the sum instead, as GRPO does, lets the axis with the widest scale rule, and maps different
    merits to one number. `rescale` divides all by their standard deviation, the paper's normalisation over the
    batch, so that the size does not grow with the number of axes; the mean is 0 within each prompt already.
    Candidates without a score on every axis, and prompts with a single one, have none.

    The mean margin of `best_versus_worst` is the difference of two of these sums over the sum of the weights.
    """
    check_axes(weights, axes, "weights")
    sums: dict[str, float] = {}
    for _, group in sorted(by_prompt(candidates).items()):
        scored = usable(group, axes)
        if len(scored) > 1:
            for name, z in z_scores(scored, axes).items():
                sums[name] = math.fsum(weights.get(axis, 1.0) * value for axis, value in z.items())
    spread = math.sqrt(math.fsum(a**2 for a in sums.values()) / max(1, len(sums)))
    rounding = 1e-9 * math.fsum(
        weights.get(axis, 1.0) for axis in axes
    )  # where axes cancel each other exactly
    scale = spread if rescale and spread > rounding else 1.0
    return {name: value / scale for name, value in sums.items()}
