"""Heads: an ensemble of linear utilities of frozen features, with how sure it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from diffdpo.preferences.bradley_terry import (
    bootstrap_counts,
    calibrate_temperature,
    fit_weights,
    group_folds,
    win_probability,
)

Rows = Float[np.ndarray, "row feature"]


@dataclass(frozen=True, kw_only=True)
class UtilityHead:
    """A utility of features: the mean over the members of an ensemble, less `caution` times their spread.

    Features are first brought to `center` and `scale` and cut at ±`limit`, so that what lies far outside of the
    songs that the head was fitted to cannot win by that alone.
    """

    center: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]
    weights: Float[np.ndarray, "member feature"]
    temperature: float = 1.0
    """Of differences between utilities, so that probabilities are right on songs held out of the fit."""
    caution: float = 0.0
    limit: float = 4.0

    def standardise(self, rows: Rows) -> Rows:
        """Features in standard deviations, cut at the limit."""
        scores = (np.asarray(rows, np.float64) - self.center) / self.scale
        return np.clip(scores, -self.limit, self.limit)

    def members(self, rows: Rows) -> Float[np.ndarray, "member row"]:
        """The utility of every row by every member."""
        return self.weights @ self.standardise(rows).T

    def spread(self, rows: Rows) -> Float[np.ndarray, " row"]:
        """Standard deviation over the members; 0 for a single one."""
        values = self.members(rows)
        return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

    def utility(self, rows: Rows) -> Float[np.ndarray, " row"]:
        """Mean over members minus caution times spread."""
        return self.members(rows).mean(0) - self.caution * self.spread(rows)

    def lowest(self) -> float:
        """A bound: no row has a lower utility."""
        deviation = self.weights.std(0, ddof=1) if len(self.weights) > 1 else np.zeros(self.weights.shape[1])
        bounds = np.abs(self.weights.mean(0)) + self.caution * deviation
        return -self.limit * float(bounds.sum())

    def probability(self, first: Rows, second: Rows) -> Float[np.ndarray, " row"]:
        """How likely the first of each two is the better, by the mean over members."""
        margins = self.members(first).mean(0) - self.members(second).mean(0)
        return win_probability(margins / self.temperature)

    def in_units_of(self, rows: Rows) -> "UtilityHead":
        """The same head, scaled so that its mean over members has the standard deviation 1 over these rows."""
        deviation = float(self.members(rows).mean(0).std(ddof=1))
        return replace(self, weights=self.weights / deviation, temperature=self.temperature / deviation)

    def tensors(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """What a weight file holds of a head."""
        numbers = np.array([self.temperature, self.caution, self.limit])
        return {
            "center": self.center,
            "scale": self.scale,
            "weights": self.weights,
            "numbers": numbers,
        }


def read_head(tensors: Mapping[str, Any], name: str) -> UtilityHead:
    """The head `name` among the arrays of a weight file, written by `UtilityHead.tensors` under `name.`.

    KeyError or ValueError for what is no head.
    """
    center, scale, weights, numbers = (
        np.asarray(tensors[f"{name}.{key}"], np.float64) for key in ("center", "scale", "weights", "numbers")
    )
    if center.shape != scale.shape or weights.ndim != 2 or weights.shape[1:] != center.shape:
        raise ValueError(f"{name}: {weights.shape} weights of {center.shape} features")
    temperature, caution, limit = (float(number) for number in numbers)
    return UtilityHead(
        center=center,
        scale=scale,
        weights=weights,
        temperature=temperature,
        caution=caution,
        limit=limit,
    )


@dataclass(frozen=True, kw_only=True)
class HeadFit:
    """How a head is fitted to pairs."""

    l2: float = 5.0
    members: int = 16
    """Bootstrap samples of groups, one member of the ensemble each."""
    folds: int = 5
    """Parts of groups; each is held out once to calibrate the temperature."""
    caution: float = 0.0
    limit: float = 4.0
    seed: int = 0

    def __call__(
        self,
        first: Rows,
        second: Rows,
        groups: Shaped[np.ndarray, " row"],
        *,
        reference: Rows,
        targets: Float[np.ndarray, " row"] | None = None,
    ) -> UtilityHead:
        """The head under which the first of each two is the better.

        `groups` names what is drawn together, such as the song or its package; center and scale of the features are
        those of `reference`. `targets` is the share of votes for the first, 1 by default.
        """
        scale = np.maximum(reference.std(0), 1e-6)
        head = UtilityHead(
            center=reference.mean(0),
            scale=scale,
            weights=np.zeros((1, reference.shape[1])),
            caution=self.caution,
            limit=self.limit,
        )
        differences = head.standardise(first) - head.standardise(second)
        margins = self.held_out_margins(differences, groups, targets)
        weights = self.ensemble(differences, groups, targets)
        return replace(head, weights=weights, temperature=calibrate_temperature(margins, targets))

    def ensemble(
        self,
        differences: Rows,
        groups: Shaped[np.ndarray, " row"],
        targets: Float[np.ndarray, " row"] | None = None,
    ) -> Float[np.ndarray, "member feature"]:
        """The weights of every member."""
        rng = np.random.default_rng(self.seed)
        samples = [bootstrap_counts(groups, rng) for _ in range(self.members)]
        return np.stack(
            [fit_weights(differences, l2=self.l2, targets=targets, counts=counts) for counts in samples]
        )

    def held_out_margins(
        self,
        differences: Rows,
        groups: Shaped[np.ndarray, " row"],
        targets: Float[np.ndarray, " row"] | None = None,
    ) -> Float[np.ndarray, " row"]:
        """The mean margin of each pair by an ensemble that saw none of its fold."""
        fold = group_folds(groups, self.folds, self.seed)
        margins = np.zeros(len(differences))
        for number in np.unique(fold):
            inside = fold == number
            part = None if targets is None else targets[~inside]
            weights = self.ensemble(differences[~inside], groups[~inside], part)
            margins[inside] = differences[inside] @ weights.mean(0)
        return margins
