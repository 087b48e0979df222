"""Diversity of a model's songs: of all of them, of two songs of one prompt, and of each witness within a prompt.

A model that answers every prompt with its best song scores high and has collapsed: these are what says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffdpo.errors import DataError
from diffdpo.evaluation.best_of_n import prompt_places
from diffdpo.evaluation.composites import WitnessValues
from diffdpo.evaluation.distances import Embeddings
from diffdpo.statistics import MIN_CLUSTERS, Interval, adjust_p_values
from diffdpo.statistics_ratios import estimate_ratio, ratio_p_value

SPREAD_LIMIT = 0.9
"""A witness' spread relative to the base's that its whole interval may not lie below."""


def vendi_score(embeddings: Embeddings) -> float:
    """The effective number of different songs: 1 for copies of one, n for n orthogonal ones.

    After Friedman & Dieng 2023, the exponential of the entropy of the eigenvalues of the matrix of cosines over n.
    """
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DataError("the Vendi score needs finite embeddings other than zero")
    directions = embeddings.astype(np.float64) / lengths
    eigenvalues = np.linalg.svd(directions, compute_uv=False) ** 2 / len(directions)
    usable = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(usable * np.log(usable)).sum()))


def prompt_distances(
    embeddings: Embeddings, prompts: Sequence[str]
) -> tuple[Float[np.ndarray, " prompt"], list[str]]:
    """The mean cosine distance of two songs of a prompt, for each prompt with two songs or more, and its name.

    DataError without such a prompt.
    """
    from scipy.spatial.distance import pdist

    groups = {name: places for name, places in prompt_places(prompts).items() if len(places) > 1}
    if not groups:
        raise DataError("the distance of two songs of a prompt needs two songs of a prompt")
    distances = [pdist(embeddings[places], "cosine").mean() for places in groups.values()]
    return np.array(distances, dtype=np.float64), list(groups)


@dataclass(frozen=True)
class DiversityChange:
    """A measure of diversity before and after, as shares of the base's."""

    base: float
    aligned: float
    ratio: Interval
    """The aligned model's by the base's. Of a Vendi score the interval is NaN: it is judged as a point value."""

    @property
    def change(self) -> float:
        """The change as a share of the base's: -0.1 is a tenth less."""
        return self.ratio.value - 1


def vendi_change(base: Embeddings, aligned: Embeddings) -> DiversityChange:
    """The Vendi scores of two sets of songs, of equal number since the score grows with it."""
    if len(base) != len(aligned):
        raise DataError(f"Vendi scores of {len(base)} and {len(aligned)} songs cannot be compared")
    scores = vendi_score(base), vendi_score(aligned)
    nan = float("nan")
    return DiversityChange(*scores, Interval(scores[1] / scores[0], nan, nan))


def distance_change(base: Embeddings, aligned: Embeddings, prompts: Sequence[str]) -> DiversityChange:
    """The mean distance of two songs of a prompt, songs paired by place, with an interval over prompts."""
    distances, names = prompt_distances(base, prompts)
    aligned_distances = prompt_distances(aligned, prompts)[0]
    ratio = estimate_ratio(aligned_distances, distances, names)
    return DiversityChange(float(distances.mean()), float(aligned_distances.mean()), ratio)


@dataclass(frozen=True)
class SpreadChange:
    """The spread of a witness within the prompt: the root of the mean variance over prompts."""

    base: float
    aligned: float
    ratio: Interval
    """The aligned model's by the base's, with an interval over prompts."""
    p_value: float
    """Of the hypothesis that the ratio is 0.9, two-sided, adjusted by Holm over the witnesses."""
    prompts: int

    @property
    def collapsed(self) -> bool:
        """Whether the interval, adjusted for the number of witnesses, lies wholly below -10 %.

        Fewer than 8 prompts decide nothing.
        """
        return self.prompts >= MIN_CLUSTERS and self.ratio.value < SPREAD_LIMIT and self.p_value < 0.05


def spread_changes(
    base: WitnessValues, aligned: WitnessValues, prompts: Sequence[str]
) -> dict[str, SpreadChange]:
    """The spread of each witness that both sides have, songs paired by place.

    Songs without a finite value on both sides are left out, as are prompts with fewer than two songs and witnesses
    without spread in the base.
    """
    variances = {axis: _variances(base[axis], aligned[axis], prompts) for axis in base if axis in aligned}
    usable = {axis: v for axis, v in variances.items() if len(v[2]) > 1 and v[0].mean() > 0}
    p_values = adjust_p_values(
        {
            axis: ratio_p_value(aligned_variances, base_variances, names, SPREAD_LIMIT**2)
            for axis, (base_variances, aligned_variances, names) in usable.items()
        }
    )
    return {axis: _spread_change(*usable[axis], p_values[axis]) for axis in usable}


def _variances(
    base: Float[np.ndarray, " song"], aligned: Float[np.ndarray, " song"], prompts: Sequence[str]
) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"], list[str]]:
    """Variances (n - 1) of both sides within each prompt, and the names of the prompts."""
    finite = np.isfinite(base) & np.isfinite(aligned)
    groups = {name: places[finite[places]] for name, places in prompt_places(prompts).items()}
    groups = {name: places for name, places in groups.items() if len(places) > 1}
    sides = [
        np.array([values[places].var(ddof=1) for places in groups.values()], dtype=np.float64)
        for values in (base, aligned)
    ]
    return sides[0], sides[1], list(groups)


def _spread_change(
    base: Float[np.ndarray, " prompt"],
    aligned: Float[np.ndarray, " prompt"],
    names: Sequence[str],
    p_value: float,
) -> SpreadChange:
    squares = estimate_ratio(aligned, base, names)
    low, value, high = (float(np.sqrt(v)) for v in (squares.low, squares.value, squares.high))
    return SpreadChange(
        base=float(np.sqrt(base.mean())),
        aligned=float(np.sqrt(aligned.mean())),
        ratio=Interval(value, low, high),
        p_value=p_value,
        prompts=len(names),
    )


def diversity_changes(
    embeddings: Mapping[str, tuple[Embeddings, Embeddings]], prompts: Sequence[str]
) -> dict[str, DiversityChange]:
    """Vendi score and distance of two songs of a prompt, by each embedding: the base's songs, the aligned model's.

    The keys are such as `vendi.style` and `distance.style`.
    """
    results = {f"vendi.{name}": vendi_change(*sides) for name, sides in embeddings.items()}
    if any(len(places) > 1 for places in prompt_places(prompts).values()):
        results |= {
            f"distance.{name}": distance_change(*sides, prompts) for name, sides in embeddings.items()
        }
    return results
