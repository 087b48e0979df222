"""Streams of votes whose listeners change in a known way: the simulation behind `bench_drift.py`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import ks_2samp

from diffdpo.preferences.bradley_terry import fit_weights
from diffdpo.preferences.taste_drift import DriftConfig, DriftMonitor, VoteStream
from diffdpo.preferences.window_tests import population_stability

Change = Literal["none", "sudden", "gradual", "songs"]
CHANGES: tuple[Change, ...] = ("sudden", "gradual", "songs", "none")
DIMENSIONS, TRAINING = 16, 2000
DRIFT, GRADUAL_VOTES, ANGLE = 2000, 2000, 60.0
SLOPE = 1.5
"""Length of the taste: songs differ by about SLOPE · √2 logits."""
BLIND = ("PSI of margins > 0.2", "KS of margins")


@dataclass(frozen=True, kw_only=True)
class Detection:
    """When each test rang first in a stream, as the index of a vote; None if it did not."""

    first: dict[str, int | None]


def make_stream(change: Change, votes: int, seed: int) -> VoteStream:
    """A stream of votes with margins of a reward model that was fitted to 2,000 votes before it.

    From vote DRIFT on: `sudden` turns the taste by 60 degrees, `gradual` does so over 2,000 votes, `songs` moves
    the songs by 0.5 in four dimensions that the reward model does not look at.
    """
    rng = np.random.default_rng(seed)
    base = np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)))[0]
    taste, goal = SLOPE * base[:, 0], SLOPE * base[:, 1]
    total = TRAINING + votes
    first, second = rng.standard_normal((2, total, DIMENSIONS))
    age = np.arange(total) - TRAINING - DRIFT
    share = {"sudden": (age >= 0) * 1.0, "gradual": np.clip(age / GRADUAL_VOTES, 0, 1)}
    angle = np.radians(ANGLE) * share.get(change, np.zeros(total))
    tastes = np.cos(angle)[:, None] * taste + np.sin(angle)[:, None] * goal
    targets = rng.random(total) < 1 / (1 + np.exp(-((first - second) * tastes).sum(1)))
    weights = fit_weights((first - second)[:TRAINING], l2=1.0, targets=targets[:TRAINING].astype(float))
    if change == "songs":
        blind = base[:, 2:6] - np.outer(weights, weights @ base[:, 2:6]) / (weights @ weights)
        shift = (age >= 0)[:, None] * 0.5 * blind.sum(1)
        first, second = first + shift, second + shift
    return VoteStream(
        margins=((first - second) @ weights)[TRAINING:],
        targets=targets[TRAINING:].astype(np.float64),
        differences=(first - second)[TRAINING:],
        embeddings=((first + second) / 2)[TRAINING:],
    )


def run_tests(stream: VoteStream, cfg: DriftConfig) -> Detection:
    """The first alarm of every test, of all tests of the monitor together, and of the blind ones."""
    reference, fresh = stream.part(0, cfg.reference), stream.part(cfg.reference, len(stream.margins))
    monitor = DriftMonitor.of(reference, cfg)
    alarms = monitor.alarms(fresh, monitor.windows(fresh))
    first: dict[str, int | None] = {}
    for name in ("loss", "likelihood ratio", "embeddings"):
        first[name] = next((alarm.vote for alarm in alarms if alarm.test == name), None)
    first["any alarm"] = alarms[0].vote if alarms else None
    starts = range(0, len(fresh.margins) - cfg.window + 1, cfg.window)
    windows = [fresh.margins[start : start + cfg.window] for start in starts]
    stability = [population_stability(reference.margins, window) > 0.2 for window in windows]
    smirnov = [
        ks_2samp(reference.margins, window, method="asymp").pvalue < 0.05 / len(windows) for window in windows
    ]
    for name, results in zip(BLIND, (stability, smirnov), strict=True):
        place = next((i for i, rings in enumerate(results) if rings), None)
        first[name] = None if place is None else cfg.reference + (place + 1) * cfg.window - 1
    return Detection(first=first)
