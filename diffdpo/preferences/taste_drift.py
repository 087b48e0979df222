"""Whether a reward model still fits its listeners: all alarms on a stream of votes, and what to do about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from diffdpo.checks import check_range
from diffdpo.preferences.bradley_terry import calibrate_temperature, log_loss
from diffdpo.preferences.loss_alarm import LossAlarm, calibrate_alarm
from diffdpo.preferences.window_tests import (
    MeanDiscrepancy,
    bartlett_factor,
    chi_square_p_value,
    likelihood_ratio,
)

Test = Literal["loss", "likelihood ratio", "embeddings"]
DriftLevel = Literal["none", "calibrate", "retrain", "realign"]
SHARES = {"loss": 0.4, "likelihood ratio": 0.3, "embeddings": 0.3}
"""How the probability of a false alarm is divided among the tests."""


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """When listeners count as changed."""

    reference: int = 1000
    """Votes at the beginning that show how things are."""
    window: int = 250
    """Votes of a window of the likelihood ratio and of the embeddings."""
    horizon: int = 5000
    """Votes within which the probability of a false alarm holds."""
    false_alarms: float = 0.03
    """Probability that any test rings within the horizon although nothing changed."""
    tolerance: float = 0.02
    """Rise of the mean loss that is no drift, in nats a vote."""
    min_fresh: int = 100
    """Votes after an alarm from which a reward model is calibrated, and judged again."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "reference", "window", low=50)
        check_range(self, "horizon", "min_fresh", low=1)
        check_range(self, "false_alarms", above=0, below=1)
        check_range(self, "tolerance", "seed", low=0)

    @property
    def windows(self) -> int:
        """Windows within the horizon, over which Bonferroni's correction is made."""
        return max(1, self.horizon // self.window)


@dataclass(frozen=True, eq=False, kw_only=True)
class VoteStream:
    """Votes in the order of time."""

    margins: Float[np.ndarray, " vote"]
    """Of the reward model, first song minus second, over a temperature."""
    targets: Float[np.ndarray, " vote"]
    """1 where the first song is preferred, 0.5 for a tie, 0 for the second."""
    differences: Float[np.ndarray, "vote feature"]
    """Features of the first song minus those of the second; without columns none are known."""
    embeddings: Float[np.ndarray, "vote dimension"]
    """What describes the songs of the vote, whichever is first; without columns nothing is known."""

    def part(self, start: int, stop: int) -> "VoteStream":
        """Consecutive votes."""
        return VoteStream(
            margins=self.margins[start:stop],
            targets=self.targets[start:stop],
            differences=self.differences[start:stop],
            embeddings=self.embeddings[start:stop],
        )

    @property
    def explanations(self) -> Float[np.ndarray, "vote column"]:
        """What may explain a vote: the margin, and differences of features."""
        return np.concatenate([self.margins[:, None], self.differences], 1)

    @property
    def losses(self) -> Float[np.ndarray, " vote"]:
        return log_loss(self.margins, self.targets)


@dataclass(frozen=True)
class Alarm:
    """An alarm of one test."""

    test: Test
    vote: int
    """Index of the vote, in the whole stream, at which the test rang: for windows the last one."""
    value: float
    """The rise of the sum of losses, or a p-value."""
    limit: float


@dataclass(frozen=True, kw_only=True)
class WindowResult:
    """The tests of a window."""

    start: int
    stop: int
    loss: float
    """Mean log-loss of the reward model."""
    agreement: float
    """Share of votes, ties counted half, that the reward model foresees."""
    ratio_p: float
    embedding_p: float
    """NaN without embeddings."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DriftMonitor:
    """All tests, calibrated on the reference."""

    cfg: DriftConfig
    reference: VoteStream
    alarm: LossAlarm
    factor: float
    """Bartlett's factor of the likelihood ratio."""
    discrepancy: MeanDiscrepancy | None

    @staticmethod
    def of(reference: VoteStream, cfg: DriftConfig) -> "DriftMonitor":
        """The tests against a reference."""
        rng = np.random.default_rng(cfg.seed)
        alarm = calibrate_alarm(
            reference.losses,
            horizon=cfg.horizon,
            false_alarms=SHARES["loss"] * cfg.false_alarms,
            tolerance=cfg.tolerance,
            rng=rng,
        )
        factor = bartlett_factor(reference.explanations, reference.targets, cfg.window, rng)
        has_embeddings = reference.embeddings.shape[1] > 0
        discrepancy = MeanDiscrepancy.of(reference.embeddings, rng) if has_embeddings else None
        return DriftMonitor(cfg=cfg, reference=reference, alarm=alarm, factor=factor, discrepancy=discrepancy)

    def level(self, test: Test) -> float:
        """The p-value below which a window's test rings."""
        return SHARES[test] * self.cfg.false_alarms / self.cfg.windows

    def windows(self, fresh: VoteStream) -> list[WindowResult]:
        """The tests of every complete window of fresh votes; indices count from the start of the reference."""
        n, size = len(self.reference.margins), self.cfg.window
        columns = self.reference.explanations
        results = []
        for start in range(0, len(fresh.margins) - size + 1, size):
            window = fresh.part(start, start + size)
            ratio = likelihood_ratio(columns, self.reference.targets, window.explanations, window.targets)
            results.append(
                WindowResult(
                    start=n + start,
                    stop=n + start + size,
                    loss=float(window.losses.mean()),
                    agreement=agreement_share(window.margins, window.targets),
                    ratio_p=chi_square_p_value(ratio, columns.shape[1], self.factor),
                    embedding_p=self.discrepancy.p_value(window.embeddings)
                    if self.discrepancy
                    else float("nan"),
                )
            )
        return results

    def alarms(self, fresh: VoteStream, windows: Sequence[WindowResult]) -> list[Alarm]:
        """Every alarm: of the loss the first, of windows all; in the order of votes."""
        n = len(self.reference.margins)
        rises = self.alarm.rises(self.reference.losses, fresh.losses)
        place = self.alarm.first(self.reference.losses, fresh.losses)
        alarms = []
        if place is not None:
            alarms.append(Alarm("loss", n + place, float(rises[place]), self.alarm.threshold))
        for result in windows:
            p_values: tuple[tuple[Test, float], ...] = (
                ("likelihood ratio", result.ratio_p),
                ("embeddings", result.embedding_p),
            )
            for test, p_value in p_values:
                if p_value < self.level(test):
                    alarms.append(Alarm(test, result.stop - 1, p_value, self.level(test)))
        return sorted(alarms, key=lambda alarm: alarm.vote)


def agreement_share(margins: Float[np.ndarray, " vote"], targets: Float[np.ndarray, " vote"]) -> float:
    """The share of votes that margins foresee; ties, and margins of zero, count half."""
    signs = np.sign(margins) * (2 * targets - 1)
    return float((0.5 + signs / 2).mean())


def next_level(
    monitor: DriftMonitor, fresh: VoteStream, alarms: Sequence[Alarm], *, is_promoted: bool
) -> DriftLevel:
    """What to do: nothing, collect votes and calibrate, retrain the reward model, or re-align the song model.

    A reward model is retrained if it is still worse than on the reference after a new temperature: half of the
    votes since the first alarm calibrate, the other half judge, one-sided at 5 %. The song model is re-aligned once
    a retrained reward model was promoted.
    """
    from scipy.special import ndtr

    if is_promoted:
        return "realign"
    if not alarms:
        return "none"
    start = alarms[0].vote + 1 - len(monitor.reference.margins)
    margins, targets = fresh.margins[start:], fresh.targets[start:]
    if len(margins) < monitor.cfg.min_fresh:
        return "calibrate"
    temperature = calibrate_temperature(margins[::2], targets[::2])
    losses, reference = log_loss(margins[1::2] / temperature, targets[1::2]), monitor.reference.losses
    error = np.hypot(
        losses.std(ddof=1) / np.sqrt(len(losses)), reference.std(ddof=1) / np.sqrt(len(reference))
    )
    excess = losses.mean() - reference.mean() - monitor.cfg.tolerance
    return "retrain" if ndtr(-excess / max(float(error), 1e-12)) < 0.05 else "calibrate"
