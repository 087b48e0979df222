"""A sequential alarm for the loss of a reward model on fresh votes: Page's test in Hinkley's form.

While listeners and songs stay as they are, the log-loss of votes varies around its mean. The alarm sums by how much
losses exceed the running mean, less a tolerance, and rings when the sum has risen by a threshold above its lowest
value. The threshold comes from resampled votes of the reference: over the horizon a stream without drift exceeds it
with a chosen probability.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

STREAMS = 400
"""Resampled streams that the threshold comes from."""
STREAM_CHUNK = 100
THRESHOLD_MARGIN = 1.4
"""Factor on the resampled quantile: the reference is a sample itself, and its law is known as well as that."""


@dataclass(frozen=True, kw_only=True)
class LossAlarm:
    """Page-Hinkley's test with a calibrated threshold."""

    tolerance: float = 0.02
    """Rise of the mean loss that is no drift, in nats a vote."""
    threshold: float = 50.0
    """Sum of excess losses at which the alarm rings, in nats."""

    def rises(
        self, reference: Float[np.ndarray, " past"], losses: Float[np.ndarray, " vote"]
    ) -> Float[np.ndarray, " vote"]:
        """After each vote how far the sum of excess losses lies above its lowest value.

        The running mean begins with the losses of the reference.
        """
        return _rises(reference.sum(), len(reference), losses, self.tolerance)

    def first(self, reference: Float[np.ndarray, " past"], losses: Float[np.ndarray, " vote"]) -> int | None:
        """The index of the vote at which the alarm rings first; None if it does not."""
        places = np.flatnonzero(self.rises(reference, losses) > self.threshold)
        return int(places[0]) if len(places) else None


def calibrate_alarm(
    reference: Float[np.ndarray, " vote"],
    *,
    horizon: int,
    false_alarms: float,
    tolerance: float = 0.02,
    rng: np.random.Generator,
) -> LossAlarm:
    """The alarm whose threshold streams without drift exceed with probability `false_alarms` within the horizon.

    Reference and streams are drawn from the losses of the reference, so that the error of its mean is in the
    threshold too. THRESHOLD_MARGIN makes up for the reference being a sample: without it three times as many
    streams of the simulation in `bench_drift.py` ring.
    """
    peaks = []
    for _ in range(0, STREAMS, STREAM_CHUNK):
        draws = rng.choice(reference, (STREAM_CHUNK, len(reference) + horizon))
        past, future = draws[:, : len(reference)], draws[:, len(reference) :]
        peaks.append(_rises(past.sum(1, keepdims=True), len(reference), future, tolerance).max(1))
    threshold = THRESHOLD_MARGIN * float(np.quantile(np.concatenate(peaks), 1 - false_alarms))
    return LossAlarm(tolerance=tolerance, threshold=threshold)


def _rises(total: Any, count: int, losses: np.ndarray, tolerance: float) -> np.ndarray:
    """How far sums of excess losses lie above their lowest; the mean begins with `count` losses of a total."""
    counts = count + np.arange(1, losses.shape[-1] + 1)
    means = (total + np.cumsum(losses, -1)) / counts
    sums = np.cumsum(losses - means - tolerance, -1)
    return np.asarray(sums - np.minimum(np.minimum.accumulate(sums, -1), 0))
