"""Progress of long work: how far, how fast, how long still. Silent on all processes but the first."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
)

console = Console(stderr=True, highlight=False)
LOG_EVERY_S = 30.0
MIN_ITEMS = 3
"""Items behind the first one from which a speed, and so a remaining time, is known."""


def rate(speed: float | None, unit: str) -> str:
    """Items a second, or seconds an item when that is the friendlier number."""
    if not speed:
        return f"- {unit}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass
class Pace:
    """The speed of work, measured behind its first item, which pays for what is loaded and compiled only once."""

    clock: Callable[[], float] = time.monotonic
    items: int = 0
    first: tuple[int, float] | None = None
    """Items and time when the first of them were finished."""

    def advance(self, count: int) -> None:
        """Count finished items."""
        self.items += count
        if self.first is None:
            self.first = self.items, self.clock()

    @property
    def speed(self) -> float | None:
        """Items a second; None until enough of them are finished to tell."""
        if self.first is None or self.items - self.first[0] < MIN_ITEMS:
            return None
        return (self.items - self.first[0]) / max(1e-9, self.clock() - self.first[1])

    def eta_s(self, items: int) -> float | None:
        """Seconds for so many more items; None until that can be told."""
        speed = self.speed
        return None if speed is None else items / speed


@dataclass
class Bar:
    """What the worker of a long loop calls."""

    total: int
    label: str
    unit: str
    progress: Progress | None
    visible: bool
    n_done: int = 0
    """Items finished, those of an earlier run included: they do not count for the speed."""
    note: str = ""
    pace: Pace = field(default_factory=Pace)
    begin: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)
    complete: bool = False
    """Whether the last line was already written."""

    def __post_init__(self) -> None:
        if self.progress is not None:
            self.task = self.progress.add_task(
                self.label, total=self.total, completed=self.n_done, note="", speed=""
            )

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count items done; `note` is a short text behind the bar, such as the current loss."""
        self.n_done += count
        self.pace.advance(count)
        self.note = self.note if note is None else note
        if self.progress is not None:
            self.progress.update(self.task, advance=count, note=self.note, speed=self.speed_text())
        elif self.visible and time.monotonic() - self.last_line > LOG_EVERY_S:
            self.log()

    def speed_text(self) -> str:
        """Speed and remaining time, as far as they are known; at the end the time that the work took."""
        if self.n_done >= self.total:
            return f"{rate(self.pace.speed, self.unit)}, {duration(time.monotonic() - self.begin)}"
        eta_s = self.pace.eta_s(self.total - self.n_done)
        if eta_s is None:
            return ""
        return f"{rate(self.pace.speed, self.unit)}, {duration(eta_s)} left"

    def log(self) -> None:
        """The line that stands in for the bar where there is no terminal."""
        self.last_line = time.monotonic()
        self.complete = self.n_done >= self.total
        parts = [f"{self.label}: {self.n_done}/{self.total}", self.speed_text()]
        line = f"{', '.join(part for part in parts if part)} {self.note}"
        console.print(line.rstrip(), markup=False)


@contextmanager
def bar(label: str, total: int, unit: str, *, n_done: int = 0, visible: bool = True) -> Iterator[Bar]:
    """A progress bar on a terminal, a line every half minute elsewhere, nothing when not enabled.

    `done` of the `total` items were finished by an earlier run.
    """
    if not (visible and console.is_terminal):
        plain = Bar(total, label, unit, None, visible, n_done)
        yield plain
        if visible and total and not plain.complete:
            plain.log()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield Bar(total, label, unit, progress, visible, n_done)


def log(text: str, *, visible: bool = True) -> None:
    """One line for the person at the terminal."""
    if visible:
        console.print(text, markup=False, soft_wrap=True)
        sys.stderr.flush()
