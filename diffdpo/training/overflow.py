"""Overflow in fp16: steps that the loss scaler skips.

fp16 ends at 65504. The loss is multiplied by a scale, so that small gradients survive; where gradients overflow,
the step is skipped and the scale halved. A run begins with a scale that is too large: its first steps are skipped.
"""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from diffdpo.errors import UserError
from diffdpo.progress import log

SKIPPED, LOSS_SCALE = "skipped", "loss_scale"
"""Metrics of fp16: 1 for a step that changed nothing, and the scale after the step."""
MAX_OVERFLOWS = 20
"""Skipped steps in a row that end a run: the scale has then fallen a millionfold."""
MIN_LOSS_SCALE = 1.0
"""The scale below which gradients are too large for fp16 by themselves."""


def scaling_metrics(accelerator: Accelerator, optimizer: Any) -> dict[str, float]:
    """Whether the last step was skipped, and the loss scale; nothing in another precision than fp16."""
    if accelerator.mixed_precision != "fp16":
        return {}
    metrics = {SKIPPED: float(bool(accelerator.optimizer_step_was_skipped))}
    scaler = accelerator.scaler
    scale = scaler.get_scale() if scaler is not None else getattr(optimizer.optimizer, "loss_scale", None)
    return metrics if scale is None else {**metrics, LOSS_SCALE: float(scale)}


def count_overflows(row: Mapping[str, float], count: int, *, visible: bool = True) -> int:
    """The number of skipped steps in a row, after `count` of them and the step of this row, which is told.

    UserError for overflow that does not end.
    """
    if not row.get(SKIPPED):
        return 0
    count, scale = count + 1, row.get(LOSS_SCALE)
    text = "" if scale is None else f"; the loss scale is now {scale:g}"
    if count >= MAX_OVERFLOWS or (scale is not None and scale < MIN_LOSS_SCALE):
        raise UserError(
            f"step {row['step']:.0f}: gradients overflowed in fp16 {count} times in a row{text}; "
            "set train.precision=bf16 or no, or lower train.learning_rate"
        )
    log(f"step {row['step']:.0f}: gradients overflowed in fp16, the step is skipped{text}", visible=visible)
    return count
