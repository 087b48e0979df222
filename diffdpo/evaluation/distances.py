"""How far apart two sets of songs are, as sets of embeddings."""

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist, pdist

Embeddings = Float[np.ndarray, "item dim"]


def median_bandwidth(reference: Embeddings) -> float:
    """The median distance between reference items: the kernel's width, fixed by the reference alone."""
    return float(np.median(pdist(reference)))


def kernel_distance(reference: Embeddings, other: Embeddings, bandwidth: float) -> float:
    """KAD (Chung et al. 2025): 100 times the unbiased squared MMD under a Gaussian kernel.

    About 0 for two samples of one distribution (it can fall a little below), and comparable between sets only
    with the same reference and bandwidth.
    """
    gamma = 1 / (2 * bandwidth**2)

    def kernel(one: Embeddings, two: Embeddings) -> Float[np.ndarray, "one two"]:
        return np.exp(-gamma * cdist(one, two, "sqeuclidean"))

    def within(items: Embeddings) -> float:
        count = len(items)
        return float((kernel(items, items).sum() - count) / (count * (count - 1)))

    return 100 * (within(reference) + within(other) - 2 * float(kernel(reference, other).mean()))
