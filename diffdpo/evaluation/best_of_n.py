"""Best-of-N by exact order statistics over stored candidates.

What choosing gains, and at which N it gains as much as a model does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb

import numpy as np
from jaxtyping import Float, Int

from diffdpo.errors import DataError
from diffdpo.evaluation.composites import WitnessValues
from diffdpo.statistics import Interval, MeanEstimate, estimate_difference, estimate_mean

SELECTION_AXES = ("harmony.key", "harmony.tuning", "rhythm.pulse", "structure.form")
"""The axes by which candidates are chosen, whatever is mined: N stays comparable between models."""


def best_of_n_kl(n: float) -> float:
    """KL divergence in nats of the best of n from one candidate: log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def prompt_z(
    values: Float[np.ndarray, " candidate"], prompts: Sequence[str]
) -> Float[np.ndarray, " candidate"]:
    """Values in standard deviations from the mean of their own prompt; 0 where a prompt's values are all alike."""
    z = np.zeros(len(values))
    for places in prompt_places(prompts).values():
        residuals = values[places] - values[places].mean()
        deviation = float(residuals.std())
        if deviation > 1e-12 * max(1.0, float(np.abs(values[places]).max())):
            z[places] = residuals / deviation
    return z


def selection_scores(
    scores: WitnessValues, prompts: Sequence[str], axes: Sequence[str] = SELECTION_AXES
) -> Float[np.ndarray, " candidate"]:
    """What candidates are chosen by: the mean of the axes' z within the prompt. DataError for an absent score."""
    for axis in axes:
        if axis not in scores or not np.isfinite(scores[axis]).all():
            raise DataError(f"best-of-N chooses by {axis}, on which candidates have no finite score")
    return np.mean([prompt_z(scores[axis], prompts) for axis in axes], axis=0)


def best_of_n_weights(selection: Float[np.ndarray, " candidate"], n: int) -> Float[np.ndarray, " candidate"]:
    """Probability of each candidate of one prompt to be the best of n of them, drawn without replacement.

    Candidates that are equal share theirs.
    """
    count = len(selection)
    if not 1 <= n <= count:
        raise DataError(f"best of {n} from {count} candidates of a prompt; n has to be from 1 to {count}")
    by_rank = np.array([comb(rank, n - 1) / comb(count, n) for rank in range(count)])
    order = np.argsort(selection, kind="stable")
    ties = np.unique(selection[order], return_inverse=True)[1]
    weights = np.empty(count)
    weights[order] = (np.bincount(ties, weights=by_rank) / np.bincount(ties))[ties]
    return weights


@dataclass(frozen=True, eq=False)
class GainCurve:
    """Expected gain of best-of-1 … N over the mean of the candidates of the same prompt."""

    prompts: tuple[str, ...]
    gains: Float[np.ndarray, "prompt n"]
    """Column k is best-of-(k + 1); the first is 0."""

    @property
    def largest(self) -> int:
        """The largest N, which is the smallest number of candidates of a prompt."""
        return self.gains.shape[1]

    def estimate(self, n: int) -> MeanEstimate:
        """The mean gain of best-of-n over prompts, with what its interval needs."""
        return estimate_mean(self.gains[:, n - 1], self.prompts)


def gain_curve(
    selection: Float[np.ndarray, " candidate"],
    values: Float[np.ndarray, " candidate"],
    prompts: Sequence[str],
    *,
    largest: int | None = None,
) -> GainCurve:
    """The gain in `values` of choosing by `selection`, for each prompt and each N.

    N goes up to `largest` or to the smallest number of candidates. DataError for values that are not finite.
    """
    if not (np.isfinite(selection).all() and np.isfinite(values).all()):
        raise DataError("best-of-N needs a finite score for each candidate")
    groups = prompt_places(prompts)
    count = min(len(places) for places in groups.values())
    count = count if largest is None else min(count, largest)
    gains = np.array(
        [
            [
                best_of_n_weights(selection[places], n) @ values[places] - values[places].mean()
                for n in range(1, count + 1)
            ]
            for places in groups.values()
        ]
    )
    return GainCurve(tuple(groups), gains)


@dataclass(frozen=True)
class EquivalentN:
    """The N at which best-of-N of the base gains as much as a model; infinite: more than the largest N."""

    interval: Interval
    largest: int
    gain: float
    """The model's."""

    def text(self) -> str:
        """The number with its interval in words, such as `2.2 (1.6 to 3.4)` or `above 10`."""
        value, low, high = (
            f"above {self.largest}" if math.isinf(n) else f"{n:.1f}"
            for n in (self.interval.value, self.interval.low, self.interval.high)
        )
        return value if value == low else f"{value} ({low} to {high})"


def equivalent_n(
    curve: GainCurve,
    change: Float[np.ndarray, " song"],
    prompts: Sequence[str],
    *,
    level: float = 0.95,
) -> EquivalentN:
    """The N of a model whose songs changed by `change` on the curve's values, linear between whole N.

    1 for a model without a gain. The interval holds the N at which the model's gain less that of best-of-N is not
    told from zero by the interval of that difference: paired where model and candidates have the same prompts, of
    two independent sets of prompts where they share none. DataError for sets that overlap in part.
    """
    model_gain = estimate_mean(change, prompts)
    differences = [_difference(curve, change, prompts, n) for n in range(1, curve.largest + 1)]
    intervals = [difference.interval(level) for difference in differences]
    return EquivalentN(
        Interval(
            _first_crossing([difference.mean for difference in differences]),
            _first_crossing([interval.low for interval in intervals]),
            _first_crossing([interval.high for interval in intervals]),
        ),
        curve.largest,
        model_gain.mean,
    )


def _difference(
    curve: GainCurve, change: Float[np.ndarray, " song"], prompts: Sequence[str], n: int
) -> MeanEstimate:
    """The model's gain less that of best-of-n."""
    shared_prompts = set(prompts) & set(curve.prompts)
    if not shared_prompts:
        return estimate_difference(estimate_mean(change, prompts), curve.estimate(n))
    if len(shared_prompts) < max(len(set(prompts)), len(curve.prompts)):
        raise DataError(
            "candidates and the model's songs share a part of their prompts; use the same or others"
        )
    gains = dict(zip(curve.prompts, curve.gains[:, n - 1].tolist(), strict=True))
    return estimate_mean(change - np.array([gains[prompt] for prompt in prompts]), prompts)


def _first_crossing(differences: Sequence[float]) -> float:
    """The smallest N, linear between whole ones, at which the difference is no longer above zero."""
    if differences[0] <= 0:
        return 1.0
    for n, (left, right) in enumerate(pairwise(differences), start=1):
        if right <= 0:
            return n + left / (left - right)
    return math.inf


def prompt_places(prompts: Sequence[str]) -> dict[str, Int[np.ndarray, " candidate"]]:
    """The places of each prompt's candidates, prompts in the order of their names."""
    names = np.array(prompts)
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
