"""The reward head: an ensemble of calibrated utilities of features, linear or with a hidden layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from diffdpo.preferences.bradley_terry import win_probability
from diffdpo.preferences.calibration import isotonic_probability

HeadRows = Float[np.ndarray, "row feature"]
HEAD_ARRAYS = ("center", "scale", "linear", "inner", "bias", "outer", "knots")


@dataclass(frozen=True, kw_only=True)
class RewardHead:
    """A utility of features: the mean over the members of an ensemble.

    A member is linear(x) + outer · tanh(inner(x) + bias), where x are the features in standard deviations, cut at
    ±limit, so that what lies far outside of the songs of the votes cannot win by that alone. With no hidden units
    it is linear. No member has a constant: only differences of utilities mean something.
    """

    center: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]
    linear: Float[np.ndarray, "member feature"]
    inner: Float[np.ndarray, "member hidden feature"]
    bias: Float[np.ndarray, "member hidden"]
    outer: Float[np.ndarray, "member hidden"]
    knots: Float[np.ndarray, "2 knot"] = field(default_factory=lambda: np.zeros((2, 0)))
    """Of the isotonic calibration; without any, the temperature calibrates."""
    temperature: float = 1.0
    limit: float = 4.0

    def standardise(self, rows: HeadRows) -> HeadRows:
        """Features in standard deviations, cut at the limit."""
        return np.clip((np.asarray(rows, np.float64) - self.center) / self.scale, -self.limit, self.limit)

    def members(self, rows: HeadRows) -> Float[np.ndarray, "member row"]:
        """The utility of every row by every member."""
        x = self.standardise(rows)
        values = self.linear @ x.T
        if self.outer.shape[1]:
            hidden = np.tanh(np.einsum("mhf,rf->mrh", self.inner, x) + self.bias[:, None])
            values = values + np.einsum("mrh,mh->mr", hidden, self.outer)
        return values

    def spread(self, rows: HeadRows) -> Float[np.ndarray, " row"]:
        """Standard deviation over the members; 0 for a single one."""
        values = self.members(rows)
        return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

    def utility(self, rows: HeadRows, caution: float = 0.0) -> Float[np.ndarray, " row"]:
        """Mean over members minus caution times spread."""
        values = self.members(rows)
        spread = values.std(0, ddof=1) if len(values) > 1 else 0.0
        return values.mean(0) - caution * spread

    def probability(self, margins: Float[np.ndarray, "*pair"]) -> Float[np.ndarray, "*pair"]:
        """How likely the first of two is preferred, by the difference of their utilities."""
        if self.knots.shape[1]:
            return isotonic_probability(margins, self.knots)
        return win_probability(np.asarray(margins) / self.temperature)

    def in_units_of(self, rows: HeadRows) -> "RewardHead":
        """The same head, scaled so that its mean over members has the standard deviation 1 over these rows."""
        values = self.members(rows)
        deviation = float(values.mean(0).std()) or 1.0
        knots = self.knots.copy()
        knots[0] /= deviation
        return replace(
            self,
            linear=self.linear / deviation,
            outer=self.outer / deviation,
            knots=knots,
            temperature=self.temperature / deviation,
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """What a weight file holds of a head."""
        arrays = {name: np.asarray(getattr(self, name), np.float32) for name in HEAD_ARRAYS}
        return arrays | {"numbers": np.array([self.temperature, self.limit])}


def read_reward_head(tensors: Mapping[str, Any]) -> RewardHead:
    """The head in the arrays of a weight file. KeyError or ValueError for what is none."""
    arrays = {name: np.asarray(tensors[name], np.float64) for name in HEAD_ARRAYS}
    features = arrays["center"].shape
    members, hidden = arrays["bias"].shape
    shapes = {
        "center": features,
        "scale": features,
        "linear": (members, *features),
        "inner": (members, hidden, *features),
        "bias": (members, hidden),
        "outer": (members, hidden),
        "knots": (2, arrays["knots"].shape[-1]),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].shape} instead of {shape}")
    temperature, limit = (float(number) for number in np.asarray(tensors["numbers"]))
    return RewardHead(**arrays, temperature=temperature, limit=limit)
