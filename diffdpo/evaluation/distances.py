"""Distances between two sets of songs, each given by the embeddings of its items."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from diffdpo.errors import DataError
from diffdpo.statistics import cluster_weights, members

Embeddings = Float[np.ndarray, "_ dim"]


def median_bandwidth(reference: Embeddings) -> float:
    """The median distance between reference items: the kernel's width, fixed by the reference alone."""
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(reference)))


def kernel_distance(reference: Embeddings, evaluation: Embeddings, bandwidth: float) -> float:
    """KAD (Chung et al. 2025): 100 times the unbiased squared MMD of two sets under a Gaussian kernel.

    About 0 for two samples of one distribution (it can fall a little below), and comparable between sets only
    with the same reference and bandwidth.
    """

    def self_similarity(items: Embeddings) -> float:
        count = len(items)
        return float((_kernel(items, items, bandwidth).sum() - count) / (count * (count - 1)))

    cross_similarity = float(_kernel(reference, evaluation, bandwidth).mean())
    return 100 * (self_similarity(reference) + self_similarity(evaluation) - 2 * cross_similarity)


def kernel_distances(
    reference: Embeddings,
    reference_clusters: Sequence[str],
    evaluation: Embeddings,
    evaluation_clusters: Sequence[str],
    bandwidth: float,
    *,
    resamples: int,
    seed: int = 0,
) -> Float[np.ndarray, " draw"]:
    """`kernel_distance`, and again for clusters drawn with replacement, `resamples` times.

    A cluster is a song with all its items, or a prompt with all its songs. Row k belongs to row k of
    `cluster_weights` of both sets: distances of several sets to one reference share its draws, so their differences
    are paired. Kernels are computed once and summed over blocks of clusters. A cluster and its double in a draw
    form no pair, since each item would meet its own copy. The distance of a draw without any pair is NaN.
    """
    reference_members, evaluation_members = members(reference_clusters), members(evaluation_clusters)
    reference_weights, evaluation_weights = (
        cluster_weights(names, resamples=resamples, seed=seed)
        for names in (reference_clusters, evaluation_clusters)
    )
    cross_similarity = np.einsum(
        "di,ij,dj->d",
        reference_weights,
        _blocks(_kernel(reference, evaluation, bandwidth), reference_members, evaluation_members),
        evaluation_weights,
        optimize=True,
    )
    cross_similarity /= (reference_weights @ np.bincount(reference_members)) * (
        evaluation_weights @ np.bincount(evaluation_members)
    )
    self_similarities = [
        _self_similarity(
            _blocks(_kernel(items, items, bandwidth), member, member), np.bincount(member), weights
        )
        for items, member, weights in (
            (reference, reference_members, reference_weights),
            (evaluation, evaluation_members, evaluation_weights),
        )
    ]
    return 100 * (self_similarities[0] + self_similarities[1] - 2 * cross_similarity)


def frechet_distance(reference: Embeddings, evaluation: Embeddings) -> float:
    """FAD (Kilgour et al. 2019): the squared Fréchet distance of normal laws with the sets' means and covariances.

    n items of a white normal law are about (dim² + 5 dim) / (4 n) from the law itself: compare sets of one size, or
    take `frechet_distance_infinity`.
    """
    return _frechet(_moments(reference), _moments(evaluation))


def frechet_distance_infinity(
    reference: Embeddings,
    evaluation: Embeddings,
    *,
    smallest: float = 0.3,
    sizes: int = 12,
    draws: int = 8,
    seed: int = 0,
) -> float:
    """FAD-infinity (Gui et al. 2024): the distance that infinitely many items of the evaluation set would have.

    The distance of subsets of n items is extrapolated, linear in 1 / n, to 0. Sizes are even in 1 / n between the
    whole set and the share `smallest` of it; of each, `draws` subsets without replacement. The reference stays
    whole, and its own bias stays. It can fall below 0. DataError for fewer than 16 items.
    """
    if len(evaluation) < 16:
        raise DataError(f"FAD-infinity of {len(evaluation)} items; it needs 16 or more")
    rng, moments = np.random.default_rng(seed), _moments(reference)
    inverses = np.linspace(1 / len(evaluation), 1 / max(8, smallest * len(evaluation)), sizes)
    counts = np.unique(np.round(1 / inverses).astype(int))
    distances = [
        np.mean(
            [
                _frechet(moments, _moments(evaluation[rng.choice(len(evaluation), count, replace=False)]))
                for _ in range(1 if count == len(evaluation) else draws)
            ]
        )
        for count in counts
    ]
    return float(np.polyfit(1 / counts, distances, 1)[1])


def _moments(items: Embeddings) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"]]:
    if len(items) < 2:
        raise DataError("a Fréchet distance needs two items or more on both sides")
    return items.mean(0), np.atleast_2d(np.cov(items.astype(np.float64), rowvar=False))


def _frechet(
    first: tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"]],
    second: tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"]],
) -> float:
    """|m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁^½ C₂ C₁^½)^½)."""
    shift = first[0] - second[0]
    values, vectors = np.linalg.eigh(first[1])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second[1] @ root), 0)).sum()
    return float(shift @ shift + np.trace(first[1]) + np.trace(second[1]) - 2 * overlap)


def _kernel(left: Embeddings, right: Embeddings, bandwidth: float) -> Float[np.ndarray, "_ _"]:
    from scipy.spatial.distance import cdist

    return np.exp(cdist(left, right, "sqeuclidean") / (-2 * bandwidth**2))


def _blocks(
    kernel: Float[np.ndarray, "_ _"], rows: Int[np.ndarray, " _"], columns: Int[np.ndarray, " _"]
) -> Float[np.ndarray, "_ _"]:
    """Sums over the items of a pair of clusters, for each pair."""
    left, right = (np.eye(member.max() + 1)[member] for member in (rows, columns))
    return left.T @ (kernel @ right)


def _self_similarity(
    blocks: Float[np.ndarray, "cluster cluster"],
    counts: Int[np.ndarray, " cluster"],
    weights: Float[np.ndarray, "draw cluster"],
) -> Float[np.ndarray, " draw"]:
    """Mean kernel over all pairs of distinct items, within clusters and between them."""
    diagonal = np.diag(blocks)
    total = np.einsum("di,ij,dj->d", weights, blocks - np.diag(diagonal), weights, optimize=True)
    total += weights @ (diagonal - counts)
    pairs = (weights @ counts) ** 2 - weights**2 @ counts**2 + weights @ (counts * (counts - 1))
    return np.divide(total, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
