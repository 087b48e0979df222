"""Seconds of each song of a trial that were played, on the server's clock.

The browser reports when it starts, switches, goes on and stops. Between two reports only the song that sounded is
credited, with the time that passed on the server and at most `MAX_GAP_S`. So no listener can have heard more than
has passed, and a browser that falls silent earns nothing.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

Event = Literal["play", "tick", "pause"]
EVENTS: tuple[str, ...] = get_args(Event)
MAX_GAP_S = 3.0
"""Longest time between two reports that counts as listening; browsers report once a second."""


@dataclass(frozen=True)
class PlaybackState:
    """How long each song of a trial was played."""

    heard_s: tuple[float, ...]
    active: int | None = None
    """The song that sounds, by its place in the trial."""
    report_time: float = 0.0
    """Time of the last report, in seconds of the server's clock."""

    def advance(self, event: str, position: int, now: float) -> "PlaybackState":
        """The state after a report that the song at `position` sounds, or that none does.

        ValueError for an event or a song that does not exist.
        """
        if event not in EVENTS or not 0 <= position < len(self.heard_s):
            raise ValueError(f"no such event: {event!r} of song {position}")
        heard_s = list(self.heard_s)
        if self.active is not None:
            heard_s[self.active] += min(max(0.0, now - self.report_time), MAX_GAP_S)
        return PlaybackState(tuple(heard_s), None if event == "pause" else position, now)

    def stop_at(self, now: float) -> "PlaybackState":
        """The state at an answer: what sounds is credited up to now."""
        if self.active is None:
            return replace(self, report_time=now)
        return self.advance("tick", self.active, now)

    def is_enough(self, min_heard_s: float) -> bool:
        """Whether every song was played long enough."""
        return all(seconds >= min_heard_s - 1e-6 for seconds in self.heard_s)
