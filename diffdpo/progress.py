"""Progress of long work: bar, speed and remaining time. Silent on all processes but the first."""

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
"""Items after the first one that a speed, and so a remaining time, is estimated from."""


def rate(speed: float | None, unit: str) -> str:
    """A speed as text: items a second, or seconds an item below one item a second."""
    if not speed:
        return f"- {unit}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"


def duration(seconds: float) -> str:
    """A duration as text, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass
class Pace:
    """The speed of work, measured after its first item, in which models are loaded and compiled."""

    clock: Callable[[], float] = time.monotonic
    items: int = 0
    first: tuple[int, float] | None = None
    """Items and time when the first of them were finished."""

    def advance(self, count: int) -> None:
        """Count finished items."""
        self.items += count
        if self.first is None:
            self.first = self.items, self.clock()

    def exclude(self, seconds: float) -> None:
        """Leave a time, in which other work was done, out of the speed."""
        if self.first is not None:
            self.first = self.first[0], self.first[1] + seconds

    @property
    def speed(self) -> float | None:
        """Items a second; None before `MIN_ITEMS` items after the first are finished."""
        if self.first is None or self.items - self.first[0] < MIN_ITEMS:
            return None
        return (self.items - self.first[0]) / max(1e-9, self.clock() - self.first[1])

    def eta_s(self, items: int) -> float | None:
        """Estimated seconds for so many more items; None while the speed is unknown."""
        speed = self.speed
        return None if speed is None else items / speed


@dataclass
class Bar:
    """The progress of one loop."""

    total: int
    label: str
    unit: str
    progress: Progress | None
    visible: bool
    n_done: int = 0
    """Finished items, with those of an earlier run, which do not count for the speed."""
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
        """Count finished items; `note` is a short text behind the bar, such as the current loss."""
        self.n_done += count
        self.pace.advance(count)
        self.note = self.note if note is None else note
        if self.progress is not None:
            self.progress.update(self.task, advance=count, note=self.note, speed=self.speed_text())
        elif self.visible and time.monotonic() - self.last_line > LOG_EVERY_S:
            self.log()

    def describe(self, note: str) -> None:
        """Show a text behind the bar while no item is finished."""
        self.note = note
        if self.progress is not None:
            self.progress.update(self.task, note=note)
        elif self.visible and time.monotonic() - self.last_line > LOG_EVERY_S:
            self.log()

    def exclude(self, seconds: float) -> None:
        """Leave a time, in which other work was done, out of speed and remaining time."""
        self.pace.exclude(seconds)

    def speed_text(self) -> str:
        """Speed and remaining time, as far as they are known; at the end the time that the work took."""
        if self.n_done >= self.total:
            return f"{rate(self.pace.speed, self.unit)}, {duration(time.monotonic() - self.begin)}"
        eta_s = self.pace.eta_s(self.total - self.n_done)
        if eta_s is None:
            return ""
        return f"{rate(self.pace.speed, self.unit)}, {duration(eta_s)} left"

    def log(self) -> None:
        """Print the progress as a line, in place of the bar where there is no terminal."""
        self.last_line = time.monotonic()
        self.complete = self.n_done >= self.total
        parts = [f"{self.label}: {self.n_done}/{self.total}", self.speed_text()]
        line = f"{', '.join(part for part in parts if part)} {self.note}"
        console.print(line.rstrip(), markup=False)


@contextmanager
def bar(label: str, total: int, unit: str, *, n_done: int = 0, visible: bool = True) -> Iterator[Bar]:
    """A progress bar on a terminal, a line every half minute elsewhere, nothing unless `visible`.

    `n_done` of the `total` items were finished by an earlier run.
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
    """Print a line to the terminal (stderr), if `visible`."""
    if visible:
        console.print(text, markup=False, soft_wrap=True)
        sys.stderr.flush()
