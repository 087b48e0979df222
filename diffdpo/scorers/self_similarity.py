"""Facts of self-similarity: what the distances between the half seconds of a song say of its form."""

import numpy as np
from jaxtyping import Float

MEAN_S, HOP_S = 0.5, 0.25
"""Length and spacing of the moments that are compared."""
EXCERPT = 8
"""Moments of an excerpt: 2 s."""
NEAREST = 6
"""Moments between an excerpt and one that may repeat it: 1.5 s."""
BEAT_LAGS, SECTION_LAG = slice(2, 6), 8
"""Lags of 0.5 to 1.25 s, and that of 2 s, from which on two moments are no neighbours."""
FEWEST_MOMENTS = EXCERPT + SECTION_LAG + 1
"""Moments that the facts need: 4.5 s."""
STILLNESS = 1e-9
FACTS = ("continuity", "recurrence", "period", "spread")
"""See `form_facts`."""


def half_second_means(
    frames: Float[np.ndarray, "frame feature"], rate: float
) -> Float[np.ndarray, "moment feature"]:
    """Means over half seconds of a sequence of features, one every quarter of a second."""
    width = max(1, round(MEAN_S * rate))
    count = max(0, int((len(frames) - width) / (HOP_S * rate)) + 1) if len(frames) >= width else 0
    sums = np.concatenate([np.zeros((1, frames.shape[1])), np.cumsum(frames, axis=0, dtype=np.float64)])
    begins = np.round(np.arange(count) * HOP_S * rate).astype(int)
    return (sums[begins + width] - sums[begins]) / width


def squared_distances(moments: Float[np.ndarray, "moment feature"]) -> Float[np.ndarray, "moment moment"]:
    """Squared Euclidean distances of all pairs of moments."""
    deviations = moments - moments.mean(0)
    products = deviations @ deviations.T
    norms = np.diagonal(products)
    return np.maximum(norms[:, None] + norms - 2 * products, 0.0)


def form_facts(moments: Float[np.ndarray, "moment feature"]) -> Float[np.ndarray, " fact"]:
    """Four facts of a song in moments of half a second.

    continuity  1 - mean squared distance at lags of 0.5 to 1.25 s over that at 2 s and more: neighbours are alike.
    recurrence  1 - mean over excerpts of 2 s of the distance to the most similar one that begins 1.5 s away or
                more, over the mean distance: what was heard comes back.
    period      1 - distance at the best lag over the mean one, lags of 1.5 s and more: all comes back at once.
    spread      logarithm of the mean distance of moments 2 s apart and more: how much there is at all.

    A song in which nothing moves has 0, 0, 0 and a very small spread. ValueError below FEWEST_MOMENTS moments.
    """
    count = len(moments)
    if count < FEWEST_MOMENTS:
        raise ValueError(f"{count} moments, the facts of form need {FEWEST_MOMENTS}")
    distances = squared_distances(moments)
    far_distance = np.sqrt(distances[np.triu_indices(count, SECTION_LAG)]).mean()
    level = distances[np.triu_indices(count, SECTION_LAG // 2)].mean()
    if level <= STILLNESS:
        return np.array([0.0, 0.0, 0.0, np.log(1e-3)])
    profile = np.array([np.diagonal(distances, lag).mean() for lag in range(count - EXCERPT)])
    far_lags = profile[NEAREST:]
    return np.array(
        [
            1 - profile[BEAT_LAGS].mean() / profile[SECTION_LAG:].mean(),
            1 - nearest_returns(distances).mean() / level,
            1 - far_lags.min() / far_lags.mean(),
            np.log(far_distance + 1e-3),
        ]
    )


def nearest_returns(distances: Float[np.ndarray, "moment moment"]) -> Float[np.ndarray, " excerpt"]:
    """For every excerpt the mean distance, moment by moment, to the most similar excerpt NEAREST moments away."""
    count = len(distances) - EXCERPT + 1
    means = np.full((count, count), np.inf)
    for lag in range(NEAREST, count):
        sums = np.concatenate([[0.0], np.cumsum(np.diagonal(distances, lag))])
        lag_means = (sums[EXCERPT:] - sums[:-EXCERPT]) / EXCERPT
        places = np.arange(len(lag_means))
        means[places, places + lag] = means[places + lag, places] = lag_means
    nearest = means.min(1)
    return nearest[np.isfinite(nearest)]
