"""Best-of-N: plain songs of a prompt, of which the best is taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import numpy as np

from diffdpo.checks import check_range
from diffdpo.search.task import SearchSong, SearchTask

MIN_ESTIMATE_SONGS = 4
"""Songs from which on the gain of one more is estimated."""


@dataclass(frozen=True)
class BestOfNSearch:
    """N songs of a prompt, each with noise of its own; the best wins.

    Song k is the one that `diffdpo sample` makes under the number k, so a longer search contains a shorter one. The
    divergence from the model is at most log N - (N - 1) / N nats (`evaluation.best_of_n.best_of_n_kl`).
    """

    n: int = 0
    """Songs; 0: as many as the budget allows."""
    stop_gain: float = 0.0
    """Stop when one more song is expected to raise the best reward by less than this; 0: never. Looked at after
    each batch."""
    free_arguments: ClassVar[tuple[str, ...]] = ("n", "stop_gain")

    def __post_init__(self) -> None:
        check_range(self, "n", low=0)
        check_range(self, "stop_gain", low=0)

    def __call__(self, task: SearchTask) -> list[SearchSong]:
        songs: list[SearchSong] = []
        for numbers in self._batches(task):
            songs += self.search_group(task, numbers)
            rewards = [song.reward.value for song in songs if song.reward.feasible]
            if (
                self.stop_gain
                and len(rewards) >= MIN_ESTIMATE_SONGS
                and expected_gain(rewards) < self.stop_gain
            ):
                break
        return songs

    def groups(self, task: SearchTask) -> list[range]:
        """See GroupedMethod: the batches, none with an early stop."""
        return [] if self.stop_gain else self._batches(task)

    def search_group(self, task: SearchTask, numbers: range) -> list[SearchSong]:
        """See GroupedMethod."""
        return task.songs(numbers)

    def _batches(self, task: SearchTask) -> list[range]:
        affordable = max(1, int(task.budget))
        count = min(self.n, affordable) if self.n else affordable
        size = min(task.sampling.batch, math.ceil(count / task.processes))
        return [range(first, min(count, first + size)) for first in range(0, count, size)]


def expected_gain(rewards: Sequence[float]) -> float:
    """How much one more song raises the best reward on average, if rewards follow a normal law of the mean and the
    standard deviation of those that are there: sd (phi(z) - z (1 - Phi(z))) with z = (best - mean) / sd."""
    values = np.asarray(rewards, np.float64)
    deviation = float(values.std(ddof=1))
    if deviation == 0:
        return 0.0
    z = (float(values.max()) - float(values.mean())) / deviation
    normal = NormalDist()
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return deviation * (density - z * (1 - normal.cdf(z)))
