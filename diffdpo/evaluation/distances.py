"""Distances between two sets of songs, each given by the embeddings of its items."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist, pdist

from diffdpo.statistics import cluster_weights, members

Embeddings = Float[np.ndarray, "_ dim"]


def median_bandwidth(reference: Embeddings) -> float:
    """The median distance between reference items: the kernel's width, fixed by the reference alone."""
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


def _kernel(left: Embeddings, right: Embeddings, bandwidth: float) -> Float[np.ndarray, "_ _"]:
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
