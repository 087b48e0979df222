"""The guard against spikes: a step whose loss or gradients lie far outside those of the last steps changes nothing.

One broken or extreme example can undo hours: its gradient is clipped, but clipped it still points nowhere, and
Adam's moments remember it. The rule is robust, so that a spike does not widen it: median and median absolute
deviation (MAD) of the last steps that were taken. Loss and norm are means over all processes, so all decide alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from diffdpo.errors import UserError
from diffdpo.progress import log
from diffdpo.training.config import SpikeConfig

SPIKE = "spike"
"""The metric of the guard: 1 for a step whose update was skipped."""
MAD_TO_SIGMA = 1.4826
"""Standard deviations in one MAD of a normal distribution."""
MIN_SPREAD = 0.05
"""Smallest standard deviation that is believed, as a share of the median: a loss that stands still has none."""


@dataclass(frozen=True, kw_only=True)
class SpikeHistory:
    """Loss and gradient norm of the last steps that were taken; part of every checkpoint."""

    loss: tuple[float, ...] = ()
    grad_norm: tuple[float, ...] = ()
    run: int = 0
    """Skipped steps in a row up to now."""

    @staticmethod
    def restore(state: Mapping[str, object]) -> "SpikeHistory":
        """The history in a checkpoint's manifest, where tuples have become lists."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in state.items()}
        return SpikeHistory(**values)  # type: ignore[arg-type]


def spike_limit(values: tuple[float, ...], cfg: SpikeConfig) -> float:
    """The largest value that is no spike after these; infinity before half of the window is filled."""
    if len(values) < max(2, cfg.window // 2):
        return math.inf
    center = median(values)
    spread = MAD_TO_SIGMA * median(abs(value - center) for value in values)
    return center + cfg.threshold * max(spread, MIN_SPREAD * abs(center))


def find_spike(
    history: SpikeHistory, cfg: SpikeConfig, *, loss: float, grad_norm: float, is_fp16: bool = False
) -> str:
    """What is a spike in a step, in words; "" for a step that may be taken.

    `is_fp16`: gradients are of fp16, whose overflow is left to the loss scaler.
    """
    for name, value, values in (("loss", loss, history.loss), ("grad_norm", grad_norm, history.grad_norm)):
        if not math.isfinite(value):
            if is_fp16 and name == "grad_norm":
                continue
            return f"{name} is {value}"
        limit = spike_limit(values, cfg)
        if value > limit:
            center = f"the median of {len(values)} steps is {median(values):.4g}"
            return f"{name} {value:.4g} is above {limit:.4g}, {center}"
    return ""


def extend_history(history: SpikeHistory, cfg: SpikeConfig, row: Mapping[str, float]) -> SpikeHistory:
    """The history after a step with these metrics."""
    if row.get(SPIKE):
        return replace(history, run=history.run + 1)
    if "grad_norm" not in row:  # skipped by the loss scaler of fp16
        return history
    return SpikeHistory(
        loss=(*history.loss, row["loss"])[-cfg.window :],
        grad_norm=(*history.grad_norm, row["grad_norm"])[-cfg.window :],
    )


def check_spikes(history: SpikeHistory, cfg: SpikeConfig, step: int, newest: Path | None) -> None:
    """UserError for more spikes in a row than allowed: then the weights, or the data from here on, are broken."""
    if history.run > cfg.max_in_row:
        note = f"the last good checkpoint is {newest}" if newest else "nothing was saved yet"
        raise UserError(
            f"step {step}: {history.run} spikes in a row; {note}; lower train.learning_rate, look for broken "
            "latents, or raise train.spike.threshold"
        )


def report_spike(step: int, reason: str, *, visible: bool) -> None:
    """Print that the update of a step is skipped."""
    log(f"step {step}: {reason}; the update is skipped", visible=visible)
