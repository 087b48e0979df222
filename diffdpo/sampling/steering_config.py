"""Configuration of steering."""

from dataclasses import dataclass, field

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.errors import ensure

STEERING_KEY = "sampling.steering"


@dataclass(frozen=True)
class SteeringConfig:
    """A direction with its strength, the blocks and times t at which it acts, and whether it is watched."""

    direction: str = field(default="", metadata=PATH)
    """File of `diffdpo direction fit`."""
    alpha: float = 1.0
    """Factor on the direction; below 0 away from it."""
    blocks: list[int] = field(default_factory=list)
    """Numbers of the blocks, from 0; empty: all of the direction."""
    interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """The times t at which it acts, both ends included: 0 is the song, 1 is noise."""
    monitor: bool = False
    """Lower alpha as the held-out probes of the direction agree more, and stop where they agree enough."""
    every: int = 4
    """Evaluations for each look of the monitor, which is at the song without this direction."""

    def __post_init__(self) -> None:
        ensure(bool(self.direction), f"{STEERING_KEY}: every entry needs a direction")
        check_range(self, "alpha", prefix=f"{STEERING_KEY}.")
        check_range(self, "every", low=1, prefix=f"{STEERING_KEY}.")
        interval = list(self.interval)
        ensure(
            len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1,
            f"{STEERING_KEY}.interval must be two times t in [0, 1], 0 the song and 1 noise, the lower one first, "
            f"got {interval}",
        )
        ensure(
            all(block >= 0 for block in self.blocks),
            f"{STEERING_KEY}: blocks are numbers from 0, got {list(self.blocks)}",
        )
