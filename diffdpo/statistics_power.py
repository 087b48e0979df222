"""How many prompts an effect needs, which effect prompts can show, and how many votes a preference needs."""

import math
from typing import Any

from diffdpo.statistics import MIN_CLUSTERS

MAX_PROMPTS = 100_000
MAX_VOTES = 100_000


def detection_power(effect: float, deviation: float, prompts: int, *, level: float = 0.05) -> float:
    """Probability that the interval of `MeanEstimate` leaves out zero on the side of the effect.

    `deviation` is that of the paired difference between prompts, in the unit of `effect`; differences are taken as
    normal. The interval is a hull of two, longer than Student's t alone by a share of about 1.2 / prompts.
    """
    from scipy.special import nctdtr, stdtrit

    freedom = prompts - 1
    limit = float(stdtrit(freedom, 1 - level / 2)) * (1 + 1.2 / prompts)
    shift = min(abs(effect) / deviation * math.sqrt(prompts), limit + 8)  # further out the power is 1
    return 1 - float(nctdtr(freedom, shift, limit))


def smallest_effect(deviation: float, prompts: int, *, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest effect that so many prompts show with probability `power`, in the unit of `deviation`.

    Infinite below 8 prompts, which decide nothing.
    """
    from scipy.optimize import brentq

    if prompts < MIN_CLUSTERS:
        return math.inf
    bound = 60 / math.sqrt(prompts)
    effect = brentq(lambda e: detection_power(e, 1.0, prompts, level=level) - power, 0.0, bound)
    return float(effect) * deviation


def prompts_for(effect: float, deviation: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """The number of prompts that show an effect with probability `power`.

    8 at the least, since fewer decide nothing, and MAX_PROMPTS where more would be needed.
    """
    power -= 1e-9  # the smallest effect of n prompts needs n
    low, high = MIN_CLUSTERS - 1, MIN_CLUSTERS
    while high < MAX_PROMPTS and detection_power(effect, deviation, high, level=level) < power:
        low, high = high, min(2 * high, MAX_PROMPTS)
    while high - low > 1:
        middle = (low + high) // 2
        if detection_power(effect, deviation, middle, level=level) < power:
            low = middle
        else:
            high = middle
    return high


def vote_power(votes: int, share: float, *, level: float = 0.05) -> float:
    """Probability that a two-sided exact binomial test tells a true share of decisive votes from one half."""
    return float(_vote_powers(votes, votes, share, level)[0])


def votes_for(share: float, *, power: float = 0.8, level: float = 0.05) -> tuple[int, int]:
    """The numbers of decisive votes that show a true share with probability `power`: the first, the robust one.

    An exact test's power is a sawtooth: from the first number on it falls below `power` again now and then, from
    the robust one on never. MAX_VOTES where more would be needed.
    """
    import numpy as np

    guess = int(min(max(64.0, 4 * 16 / (2 * share - 1) ** 2), MAX_VOTES))
    enough = np.flatnonzero(_vote_powers(1, guess, share, level) >= power) + 1
    if not len(enough):
        return MAX_VOTES, MAX_VOTES
    weak = np.setdiff1d(np.arange(1, guess + 1), enough)
    return int(enough[0]), int(weak[-1]) + 1


def _vote_powers(first: int, last: int, share: float, level: float) -> Any:
    """The power of each number of votes from `first` to `last`."""
    import numpy as np
    from scipy.stats import binom

    counts = np.arange(first, last + 1)
    limit = binom.isf(level / 2, counts, 0.5)  # more wins than this are too many
    return binom.sf(limit, counts, share) + binom.cdf(counts - limit - 1, counts, share)


def design_effect(per_rater: float, correlation: float) -> float:
    """The factor of votes when each rater gives m of them, whose answers correlate (ICC): 1 + (m - 1) ICC."""
    return 1 + (per_rater - 1) * correlation
