"""Does a model make songs, or play its training songs back?

A copy lies nearer to some segment of the training songs than real music does that was not trained on. How near that
is depends on the space; so samples are compared with held-out songs in the same space, and a space proves
something only if it finds training songs themselves, slightly changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

from diffdpo.statistics import Interval, cluster_weights, members, weighted_quantiles

CHUNK = 8192
"""Positions compared at a time, which bounds the memory."""
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9)


@dataclass(frozen=True)
class WhiteningTransform:
    """Principal components of latents, the first few, each with variance one."""

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
    """Distance (Euclid) of each query to the nearest item."""
    return np.min([cdist(queries, library[part]).min(1) for part in _parts(len(library))], axis=0)


def best_match(
    queries: Float[np.ndarray, "query frame component"], song: Float[np.ndarray, "length component"]
) -> Float[np.ndarray, " query"]:
    """Normalised cross-correlation of each query with the stretch of a song that is most like it, over all shifts.

    Each component's mean over a stretch is taken off first: what counts is what happens in it, not its colour, so
    that blandness is no likeness. 1 is a copy, whatever its level. A song that is too short matches nothing, -1.
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
    """How near a set of segments lies to the training songs, against held-out real segments."""

    segments: int
    clusters: int
    quantiles: dict[str, float]
    """Of the distance to the nearest training segment."""
    nearer: Interval
    """Share of the segments that are nearer than all but the nearest 1 % of held-out ones."""
    median_change: Interval
    """The median less that of held-out segments; below zero is nearer."""


def nearness(
    distances: Float[np.ndarray, " segment"],
    clusters: Sequence[str],
    held_out: Float[np.ndarray, " other"],
    held_out_clusters: Sequence[str],
    *,
    share: float = 0.01,
    resamples: int = 2000,
) -> Nearness:
    """Intervals over clusters of both (prompts or songs), each drawn anew with its threshold."""
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
