"""Ranges of the numbers of a configuration."""

import math
from typing import Any

from diffdpo.errors import ensure

MAX_SEED = 2**63 - 1


def check_range(
    cfg: Any,
    *names: str,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    prefix: str = "",
) -> None:
    """ValueError unless the numbers in these fields lie in a range; NaN never does.

    `low` and `high` belong to the range, `above` and `below` do not. An end without a bound leaves infinity out;
    low=-inf and high=inf let it in. `prefix` stands before the field in the message: "train.".
    """
    for name in names:
        check_number(getattr(cfg, name), f"{prefix}{name}", low=low, above=above, high=high, below=below)


def check_number(
    value: float,
    name: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> None:
    """ValueError, which names the value, unless it lies in a range; see `check_range`."""
    lowest, highest = -math.inf if above is None else above, math.inf if below is None else below
    starts = value >= low if low is not None else value > lowest
    ends = value <= high if high is not None else value < highest
    ensure(starts and ends, f"{name} must be {_range(low, above, high, below)}, got {value}")


def check_seed(cfg: Any, *names: str, prefix: str = "") -> None:
    """ValueError unless the seeds in these fields are from 0 to 2⁶³ - 1, which fits every generator and table."""
    for name in names:
        value = getattr(cfg, name)
        ensure(
            0 <= value <= MAX_SEED,
            f"{prefix}{name} must be a whole number of at least 0, below 2**63, got {value}",
        )


def _range(low: float | None, above: float | None, high: float | None, below: float | None) -> str:
    """A range in words."""
    ends = [bound for bound in (high, below) if bound is not None and bound != math.inf]
    begins = [bound for bound in (low, above) if bound is not None and bound != -math.inf]
    if begins and ends:
        return f"in {'[' if low is not None else '('}{begins[0]:g}, {ends[0]:g}{']' if high is not None else ')'}"
    if begins:
        return (
            f"at least {begins[0]:g}"
            if low is not None
            else ("a positive number" if begins[0] == 0 else f"above {begins[0]:g}")
        )
    if ends:
        return f"at most {ends[0]:g}" if high is not None else f"below {ends[0]:g}"
    return "a number" if low == -math.inf or high == math.inf else "a finite number"
