"""Candidates by prompt, and their scores in standard deviations within it."""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Float

from diffdpo.mining.values import Candidates, PromptCandidates


def by_prompt(candidates: Candidates) -> list[PromptCandidates]:
    """The prompts by id, each with its candidates by id, so that no result depends on the order they came in.

    Candidates without a finite score on every axis are counted and left out.
    """
    ids, prompt_ids = candidates.sample_ids, candidates.prompt_ids
    complete = np.isfinite(candidates.scores).all(1).tolist()
    order = sorted(range(len(ids)), key=ids.__getitem__)
    prompts = []
    for prompt_id, places in groupby(sorted(order, key=prompt_ids.__getitem__), key=prompt_ids.__getitem__):
        members = list(places)
        usable = [place for place in members if complete[place]]
        scores = candidates.scores[usable]
        prompts.append(
            PromptCandidates(
                prompt_id=prompt_id,
                group=candidates.groups[members[0]],
                sample_ids=tuple([ids[place] for place in usable]),
                scores=scores,
                z=z_scores(scores),
                count=len(members),
            )
        )
    return prompts


def z_scores(scores: Float[np.ndarray, "candidate axis"]) -> Float[np.ndarray, "candidate axis"]:
    """Scores in standard deviations from the mean of each axis; 0 on an axis of ties."""
    columns = [standard_scores(column) for column in scores.T.tolist()]
    return np.array(columns, np.float64).reshape(scores.T.shape).T


def standard_scores(values: Sequence[float]) -> list[float]:
    """Standard deviations from the mean; zeros for values that are all the same.

    Sums are exact (`math.fsum`), so that the order of the values changes no bit.
    """
    if not values:
        return []
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / len(values))
    is_tie = std <= 1e-9 * max(1.0, abs(mean))
    return [0.0 if is_tie else (value - mean) / std for value in values]
