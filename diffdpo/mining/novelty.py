"""Novelty: how unlike the other candidates of its prompt a song is. It is mined beside the axes of quality.

A model trained on quality alone loses diversity: its answers to a prompt become alike. Pairs whose winner is also
less like the rest hold against that. So does Diverse Preference Optimization (Lanchantin et al. 2025,
arXiv 2501.18101), whose winner is the most diverse of the good answers, whose loser the least diverse of the bad.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

NOVELTY = "novelty."
"""Before the name of the extractor, in the name of an axis."""


def novelty(
    embeddings: Float[np.ndarray, "candidate dim"], prompt_ids: Sequence[str]
) -> Float[np.ndarray, " candidate"]:
    """The mean cosine distance of each song to the other candidates of its prompt, from 0 (all alike) to 2.

    NaN for a song without an embedding (NaN or zero) and for one that has no other to be compared with.
    """
    lengths = np.linalg.norm(embeddings, axis=1)
    result = np.full(len(embeddings), np.nan)
    prompts: dict[str, list[int]] = {}
    for place in np.flatnonzero(np.isfinite(lengths) & (lengths > 0)).tolist():
        prompts.setdefault(prompt_ids[place], []).append(place)
    for places in prompts.values():
        if len(places) > 1:
            directions = embeddings[places] / lengths[places, None]
            cosines = directions @ directions.sum(0) - 1  # to all others, the song itself left out
            result[places] = 1 - cosines / (len(places) - 1)
    return result
