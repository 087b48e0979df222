"""Utilities: how much more of an axis is worth. By name, for `utility` in the configuration of mining.

A utility is monotone in the score, so that it reverses no comparison. Rules and ratings see utilities in place of
scores; margins stay in standard deviations of the scores within the prompt, so that a difference that is worth
nothing has no margin, however small all others are.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffdpo.config_paths import PATH
from diffdpo.mining.reference import REFERENCE_PATH, RealReference, read_reference
from diffdpo.mining.values import Candidates
from diffdpo.registry import Table

KNEE, TOP = 50, 90
"""Percentiles of real songs: up to the first a utility is the score itself, from the second on it is flat."""


@runtime_checkable
class Utility(Protocol):
    """A frozen dataclass whose call is a pure function of candidates and of the texts of their prompts, by id."""

    def check(self, axes: Collection[str]) -> None:
        """A UserError where the utility has no measure of one of these axes."""
        ...

    def __call__(
        self, candidates: Candidates, texts: Mapping[str, str]
    ) -> Float[np.ndarray, "candidate axis"]: ...


@dataclass(frozen=True)
class Linear:
    """More is always better: the score itself."""

    def check(self, axes: Collection[str]) -> None:
        """Every axis will do."""

    def __call__(
        self, candidates: Candidates, texts: Mapping[str, str]
    ) -> Float[np.ndarray, "candidate axis"]:
        return candidates.scores


@dataclass(frozen=True)
class Saturating:
    """More is better only up to where real songs are: flat from the 90th percentile of their windows on.

    With the median m and the 90th percentile c of windows of real songs of the prompt's style, u(x) = x up to m,
    m + (c - m) (s - s² / 2) with s = (x - m) / (c - m) in between, and (m + c) / 2 from c on. u is monotone,
    concave, smooth but for m = c, and bounded above. The style is the one that the prompt's text names; a style of
    fewer than 20 windows has the percentiles of all.
    """

    reference: str = field(default="", metadata=PATH)
    """A file of `diffdpo reference`; empty: the package's, songs through the tiny model's codec."""
    style: str = ""
    """The style of all prompts, such as "rock"; empty: what the prompt's text names; "all styles": all together."""

    @property
    def _location(self) -> str:
        return f"utility 'saturating': {self.reference or REFERENCE_PATH.name}"

    def read(self) -> RealReference:
        """The reference, its style checked."""
        reference = read_reference(Path(self.reference) if self.reference else REFERENCE_PATH)
        if self.style:
            reference.check_style(self.style.lower(), self._location)
        return reference

    def check(self, axes: Collection[str]) -> None:
        """ConfigError for an axis or a style that the reference lacks, DataError for a file that is none."""
        self.read().check_axes(axes, self._location)

    def __call__(
        self, candidates: Candidates, texts: Mapping[str, str]
    ) -> Float[np.ndarray, "candidate axis"]:
        reference = self.read()
        reference.check_axes(candidates.axes, self._location)
        style = {
            prompt: self.style.lower() or reference.style_of(texts.get(prompt, ""))
            for prompt in set(candidates.prompt_ids)
        }
        styles = np.array([style[prompt] for prompt in candidates.prompt_ids])
        utilities = np.array(candidates.scores, np.float64)
        for name in set(style.values()):
            rows = np.flatnonzero(styles == name)
            for column, axis in enumerate(candidates.axes):
                knee, top = (reference.percentile(axis, percent, name) for percent in (KNEE, TOP))
                utilities[rows, column] = saturate(utilities[rows, column], knee, top)
        return utilities


def saturate(values: Float[np.ndarray, "*value"], knee: float, top: float) -> Float[np.ndarray, "*value"]:
    """Values up to the knee, a parabola to the top that meets both smoothly, and (knee + top) / 2 above."""
    width = top - knee
    if width <= 0:
        return np.minimum(values, knee)
    remaining = np.clip(top - values, 0.0, width)
    curve = knee + width / 2 - remaining**2 / (2 * width)  # each step keeps order, rounding included
    return np.where(values <= knee, values, np.minimum(values, np.maximum(knee, curve)))


AXIS_UTILITIES: Table[type] = Table("utility", {"linear": Linear, "saturating": Saturating})
