"""The reward of a search: axes of scorers, weighted, and as constraints.

Constraints come before sums. Selection on one axis degrades others (YuE2: best of 8 by musicality raised the error
rate of the lyrics), so what must not get worse is a constraint, and a song that violates one never wins while
another violates none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError
from diffdpo.mining.reference import REFERENCE_PATH, read_reference
from diffdpo.scorers import SCORERS
from diffdpo.scorers.axes import check_axis_names
from diffdpo.scorers.gates import failures

DEFAULT_WEIGHTS = {"critic.quality": 1.0, "structure.order": 1.0}
"""The axes that the demo mines."""
INNER_80_PERCENT = 2.5631
"""Standard deviations between the 10th and the 90th percentile of a normal law."""


@dataclass(frozen=True)
class Constraint:
    """A range of an axis, in the axis' own units."""

    axis: str = "???"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"search.reward.constraints: {self.axis} needs low, high or both")
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                check_range(self, name, low=-math.inf, high=math.inf, prefix="search.reward.constraints.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(
                f"search.reward.constraints: {self.axis} needs low <= high, got {self.low:g} and {self.high:g}"
            )

    def violation(self, value: float) -> float:
        """How far a value is outside; 0 inside, infinite for no number."""
        if math.isnan(value):
            return math.inf
        shortfall = 0.0 if self.low is None else self.low - value
        excess = 0.0 if self.high is None else value - self.high
        return max(0.0, shortfall, excess)


@dataclass(frozen=True)
class RewardConfig:
    """What a search looks for: the weighted mean of axes, under constraints."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each axis; by default critic.quality and structure.order count alike. An axis counts in standard
    deviations, see `scales`."""
    constraints: list[Constraint] = field(default_factory=list)
    """Ranges that a song has to keep, each {axis, low, high}. They come before the sum: a song outside of one never
    wins while another keeps all."""
    scales: dict[str, float] = field(default_factory=dict)
    """Standard deviation of an axis. By default that of windows of real songs if the package has them, else 1."""
    scorer_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of scorers that need some, by name: {reward: {path: runs/reward}}."""
    gates: bool = True
    """Whether silence, clipping and numbers that are not finite violate, too."""

    def __post_init__(self) -> None:
        for axis, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"search.reward.weights: {axis} must be a number, got {weight}")
        if self.weights and not any(self.weights.values()):
            raise ValueError("search.reward.weights: all are 0; give one axis another weight")
        for axis, scale in self.scales.items():
            if not scale > 0:
                raise ValueError(f"search.reward.scales: {axis} must be above 0, got {scale:g}")

    @property
    def axis_weights(self) -> dict[str, float]:
        """The weight of each axis, the default included."""
        return self.weights or DEFAULT_WEIGHTS

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes that are weighed or constrained."""
        return tuple(dict.fromkeys([*self.axis_weights, *(limits.axis for limits in self.constraints)]))

    def check(self) -> None:
        """ConfigError for an axis that belongs to no scorer, and for arguments of a scorer without an axis here."""
        check_axis_names(self.axes, "search.reward")
        names = [name for name, scorer in SCORERS.items() if set(scorer.axes) & set(self.axes)]
        for name in self.scorer_args:
            if name not in names:
                raise ConfigError(
                    f"search.reward.scorer_args: no axis here belongs to {name!r}; these do: {', '.join(names)}"
                )

    def scorers(self) -> list[Any]:
        """The scorers that the axes belong to: names, or {name: …, args: {…}} for those with arguments."""
        self.check()
        names = [name for name, scorer in SCORERS.items() if set(scorer.axes) & set(self.axes)]
        return [
            {"name": name, "args": dict(self.scorer_args[name])} if name in self.scorer_args else name
            for name in names
        ]

    def unit(self, axis: str) -> tuple[float, float]:
        """The value of an axis that counts as 0, and its standard deviation."""
        center, scale = shipped_units().get(axis, (0.0, 1.0))
        return center, self.scales.get(axis, scale)


@dataclass(frozen=True)
class Reward:
    """The reward of one song."""

    value: float
    """Weighted mean of the axes in standard deviations."""
    violation: float
    """Sum of what constraints are violated by, in standard deviations; 0 for a song that violates none."""
    axes: Mapping[str, float] = field(default_factory=dict)
    """Raw values of all axes that were scored."""

    @property
    def feasible(self) -> bool:
        """Whether no constraint is violated."""
        return self.violation == 0

    @property
    def key(self) -> tuple[float, float]:
        """Bigger is better: less violation first, then more value. NaN is the least."""
        return (-self.violation, -math.inf if math.isnan(self.value) else self.value)


def reward_of(cfg: RewardConfig, axes: Mapping[str, float], gates: Mapping[str, float]) -> Reward:
    """The reward of a song from its raw values by axis and its gates, see `scorers.gates`."""
    total = sum(abs(weight) for weight in cfg.axis_weights.values()) or 1.0
    value = 0.0
    for axis, weight in cfg.axis_weights.items():
        center, scale = cfg.unit(axis)
        value += weight / total * (axes[axis] - center) / scale
    violation = sum(
        limits.violation(axes[limits.axis]) / cfg.unit(limits.axis)[1] for limits in cfg.constraints
    )
    if math.isnan(value) or (cfg.gates and failures(gates)):
        violation = math.inf
    return Reward(value, violation, dict(axes))


def rank(rewards: Sequence[Reward]) -> list[int]:
    """Places of rewards, the best first; of equals the earlier one first."""
    return sorted(range(len(rewards)), key=lambda place: rewards[place].key, reverse=True)


@cache
def shipped_units() -> dict[str, tuple[float, float]]:
    """Median and standard deviation of windows of real songs, by axis: from the reference of the package."""
    reference = read_reference(REFERENCE_PATH)
    units = {}
    for axis in reference.axes:
        low, middle, high = (reference.percentile(axis, percent) for percent in (10, 50, 90))
        units[axis] = (middle, (high - low) / INNER_80_PERCENT or 1.0)
    return units
