"""How many prompts an effect needs, and which effect a number of prompts can show."""

import math

from diffdpo.statistics import MIN_CLUSTERS

MAX_PROMPTS = 100_000


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
