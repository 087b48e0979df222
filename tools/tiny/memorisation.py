"""Measures of memorisation: how near segments lie to the training songs, against held-out real segments.

A copy lies nearer to some segment of the training songs than real music outside the training does. The distance
depends on the space, so samples are compared with held-out songs in the same space, and a space proves something
only if slightly changed training songs are found in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

from diffdpo.statistics import Interval, cluster_weights, members, weighted_quantiles

CHUNK = 8192
"""The number of positions that are compared at a time, which bounds the memory."""
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9)


@dataclass(frozen=True)
class WhiteningTransform:
    """The projection of latents on their first principal components, each scaled to variance one."""

    mean: Float[np.ndarray, " channel"]
    axes: Float[np.ndarray, "channel component"]

    @staticmethod
    def of(latents: Float[np.ndarray, "frame channel"], components: int) -> "WhiteningTransform":
        mean = latents.mean(0)
        variances, directions = np.linalg.eigh(np.cov((latents - mean).T.astype(np.float64)))
        first = slice(None, -components - 1, -1)  # the largest are last
        axes = directions[:, first] / np.sqrt(variances[first])
        return WhiteningTransform(mean, axes.astype(latents.dtype))

    def __call__(self, latents: Float[np.ndarray, "frame channel"]) -> Float[np.ndarray, "frame component"]:
        return (latents - self.mean) @ self.axes


def nearest(
    queries: Float[np.ndarray, "query dim"], library: Float[np.ndarray, "item dim"]
) -> Float[np.ndarray, " query"]:
    """The Euclidean distance of each query to the nearest item of the library."""
    return np.min([cdist(queries, library[part]).min(1) for part in _parts(len(library))], axis=0)


def best_match(
    queries: Float[np.ndarray, "query frame component"], song: Float[np.ndarray, "length component"]
) -> Float[np.ndarray, " query"]:
    """The largest normalised cross-correlation of each query with a window of a song, over all shifts.

    Query and window lose the mean of each component first, so that changes in time are compared, not their level.
    1 is a copy at any level; -1 is the result for a song that is shorter than the queries.
    """
    count, frames, _ = queries.shape
    places = len(song) - frames + 1
    if places < 1:
        return np.full(count, -1, dtype=queries.dtype)
    centred_queries = (queries - queries.mean(1, keepdims=True)).reshape(count, -1)
    centred_queries /= np.maximum(np.linalg.norm(centred_queries, axis=1, keepdims=True), 1e-12)
    windows = np.lib.stride_tricks.sliding_window_view(song, frames, axis=0)  # [place, component, frame]
    best = np.full(count, -1, dtype=queries.dtype)
    for part in _parts(places):
        window = windows[part].swapaxes(1, 2)
        size = window.shape[0]
        window = (window - window.mean(1, keepdims=True)).reshape(size, -1)
        window /= np.maximum(np.linalg.norm(window, axis=1, keepdims=True), 1e-12)
        best = np.maximum(best, (centred_queries @ window.T).max(1))
    return best


def _parts(total: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, total, CHUNK))


@dataclass(frozen=True)
class Nearness:
    """The nearness of a set of segments to the training songs, against held-out real segments."""

    segments: int
    clusters: int
    quantiles: dict[str, float]
    """Quantiles of the distance to the nearest training segment."""
    nearer: Interval
    """The share of segments that are nearer than the 1 % quantile of held-out segments."""
    median_change: Interval
    """The median distance less that of held-out segments; below zero is nearer."""


def nearness(
    distances: Float[np.ndarray, " segment"],
    clusters: Sequence[str],
    held_out: Float[np.ndarray, " other"],
    held_out_clusters: Sequence[str],
    *,
    share: float = 0.01,
    resamples: int = 2000,
) -> Nearness:
    """Nearness with intervals from a bootstrap over the clusters (prompts or songs) of both sets.

    Each resample has its own threshold, the `share` quantile of the held-out distances.
    """
    weights, held_out_weights = (
        cluster_weights(names, resamples=resamples)[:, members(names)]
        for names in (clusters, held_out_clusters)
    )
    threshold = weighted_quantiles(held_out, held_out_weights, share)
    nearer = ((distances < threshold[:, None]) * weights).sum(1) / weights.sum(1)
    change = weighted_quantiles(distances, weights, 0.5) - weighted_quantiles(held_out, held_out_weights, 0.5)
    return Nearness(
        segments=len(distances),
        clusters=len(set(clusters)),
        quantiles={f"{q:g}": float(np.quantile(distances, q)) for q in QUANTILES},
        nearer=Interval.of(nearer),
        median_change=Interval.of(change),
    )
