"""Which pairs of songs the page plays: the worst, those in the middle and the best, by one number a pair."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Case = Literal["worst", "median", "best"]


def choose_cases(gains: Sequence[float], count: int) -> list[tuple[int, Case]]:
    """The places of up to `count` pairs and what each is a case of: worst first, then the middle, then the best.

    A third each; of what is left over the first goes to the worst, the second to the best. No pair is shown twice.
    Of equal gains the earlier one is the worse.
    """
    order = np.argsort(np.array(gains, dtype=np.float64), kind="stable").tolist()
    count = min(count, len(order))
    n_worst, n_best = (count + 2) // 3, (count + 1) // 3
    n_median = count - n_worst - n_best
    start = min(max(n_worst, (len(order) - n_median) // 2), len(order) - n_best - n_median)
    cases: list[tuple[int, Case]] = [(place, "worst") for place in order[:n_worst]]
    cases += [(place, "median") for place in order[start : start + n_median]]
    return cases + [(place, "best") for place in order[len(order) - n_best :]]
