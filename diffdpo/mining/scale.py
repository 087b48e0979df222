"""Candidates by prompt, and their scores in standard deviations within the prompt."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

import numpy as np
from jaxtyping import Float

from diffdpo.mining.values import Candidates, PromptCandidates


def group_by_prompt(
    candidates: Candidates,
    utilities: Float[np.ndarray, "candidate axis"] | None = None,
    songs: Mapping[str, str] | None = None,
) -> list[PromptCandidates]:
    """Prompts sorted by id, each with its candidates sorted by id, whatever the order of the input.

    Candidates without a finite score on every axis are counted and left out. `songs` are by prompt the songs of a
    data set whose captions the prompts are. `utilities` stand in place of the scores; their differences are
    measured in standard deviations of the scores.
    """
    songs = songs or {}
    ids, prompt_ids = candidates.sample_ids, candidates.prompt_ids
    order = sorted(range(len(ids)), key=ids.__getitem__)
    order.sort(key=prompt_ids.__getitem__)
    complete = np.isfinite(candidates.scores).all(1).tolist()
    usable = [place for place in order if complete[place]]
    scores = candidates.scores[usable]
    values = scores if utilities is None else utilities[usable]
    groups, ends, end = [], [0], 0
    for prompt_id, members in groupby(order, key=prompt_ids.__getitem__):
        places = list(members)
        end += sum(complete[place] for place in places)
        groups.append((prompt_id, places))
        ends.append(end)
    z = z_scores(values, ends, scores)
    return [
        PromptCandidates(
            prompt_id=prompt_id,
            group=candidates.groups[places[0]],
            sample_ids=tuple([ids[place] for place in usable[start:stop]]),
            scores=values[start:stop],
            z=z[start:stop],
            count=len(places),
            song=songs.get(prompt_id, ""),
        )
        for (prompt_id, places), (start, stop) in zip(groups, pairwise(ends), strict=True)
    ]


def z_scores(
    values: Float[np.ndarray, "candidate axis"],
    ends: Sequence[int],
    scores: Float[np.ndarray, "candidate axis"] | None = None,
) -> Float[np.ndarray, "candidate axis"]:
    """Values in standard deviations from their mean within the prompt, on each axis; 0 on an axis of ties.

    The candidates of a prompt stand between two neighbouring `ends`. The deviations are those of `scores`, by
    default of the values themselves.
    """
    z = np.empty(values.shape)
    measures = values if scores is None else scores
    for axis, (column, measure) in enumerate(zip(values.T.tolist(), measures.T.tolist(), strict=True)):
        z[:, axis] = [
            value
            for start, stop in pairwise(ends)
            for value in exact_z_scores(column[start:stop], measure[start:stop])
        ]
    return z


def exact_z_scores(values: Sequence[float], scores: Sequence[float] | None = None) -> list[float]:
    """Standard deviations from the mean; zeros for values that are all the same.

    The standard deviation is that of `scores`, by default of the values themselves. Sums are exact (`math.fsum`),
    so that the order of the values changes no bit.
    """
    if not values:
        return []
    mean, spread, is_tie = _exact_moments(values)
    if scores is not None and scores != values:
        spread = _exact_moments(scores)[1]
    return [0.0 if is_tie else (value - mean) / spread for value in values]


def _exact_moments(values: Sequence[float]) -> tuple[float, float, bool]:
    """Mean and standard deviation of values, and whether they are all the same but for rounding."""
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / len(values))
    return mean, spread, spread <= 1e-9 * max(1.0, abs(mean))
