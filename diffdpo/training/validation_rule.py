"""Which validated step is the best, and when a training that no longer gets better ends. Pure functions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffdpo.errors import ConfigError
from diffdpo.registry import closest
from diffdpo.training.validation_config import ValidationConfig

PREFIX = "validation/"
"""What metrics of validation begin with in metrics.jsonl and trackers."""


@dataclass(frozen=True, kw_only=True)
class BestStep:
    """The best validated step so far; part of every checkpoint."""

    step: int = -1
    """-1 before the first validation with a value."""
    value: float = math.nan
    stale: int = 0
    """Validations since then."""

    def entries(self) -> dict[str, Any]:
        """The best step as JSON, which has no number for one that is not there."""
        value = self.value if math.isfinite(self.value) else None
        return {"step": self.step, "value": value, "stale": self.stale}

    @staticmethod
    def restore(entries: Mapping[str, Any]) -> "BestStep":
        """The best step from JSON."""
        return BestStep(
            **{**entries, "value": math.nan if entries.get("value") is None else entries["value"]}
        )


def choose_best(best: BestStep, step: int, value: float, cfg: ValidationConfig) -> BestStep:
    """The best step after another validation. A value that is no number is never better."""
    gain = best.value - value if cfg.lower_is_better else value - best.value
    is_first = best.step < 0 and math.isfinite(value)
    if is_first or gain > cfg.min_delta:
        return BestStep(step=step, value=value)
    return BestStep(step=best.step, value=best.value, stale=best.stale + 1)


def is_stopped(best: BestStep, cfg: ValidationConfig | None) -> bool:
    """Whether so many validations in a row brought nothing better that the training ends."""
    return cfg is not None and 0 < cfg.patience <= best.stale


def is_due(step: int, steps: int, cfg: ValidationConfig | None) -> bool:
    """Whether a step is validated, counted from 0, the start: each `every`-th, the first and the last."""
    return cfg is not None and (step % cfg.every == 0 or step == steps)


def metric_value(metrics: Mapping[str, float], cfg: ValidationConfig) -> float:
    """The value of the metric that decides; NaN where the configuration names none.

    ConfigError for a metric that is not measured.
    """
    if not cfg.best_metric:
        return math.nan
    name = f"{PREFIX}{cfg.best_metric}"
    if name not in metrics:
        names = sorted(key.removeprefix(PREFIX) for key in metrics)
        raise ConfigError(
            f"train.validation.metric: {cfg.best_metric!r} is not measured.{closest(cfg.best_metric, names)} "
            f"Measured: {', '.join(names)}."
        )
    return metrics[name]
