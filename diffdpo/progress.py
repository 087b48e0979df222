"""Progress of long work: how far, how fast, how long still. Silent on all processes but the first."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True, highlight=False)
LOG_EVERY_S = 30.0


class Rate(ProgressColumn):
    """Items a second, or seconds an item when that is the friendlier number."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed, self.unit), style="progress.data.speed")


def rate(speed: float | None, unit: str) -> str:
    if not speed:
        return f"- {unit}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"


@dataclass
class Bar:
    """What the worker of a long loop calls."""

    total: int
    label: str
    unit: str
    progress: Progress | None
    enabled: bool
    done: int = 0
    """Items finished, those of an earlier run included: they do not count for the rate."""
    note: str = ""
    began: float = field(default_factory=time.monotonic)
    logged: float = field(default_factory=time.monotonic)
    complete: bool = False
    """Whether the last line was already written."""

    def __post_init__(self) -> None:
        self.before = self.done
        if self.progress is not None:
            self.task = self.progress.add_task(self.label, total=self.total, completed=self.done, note="")

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count items done; `note` is a short text behind the bar, such as the current loss."""
        self.done += count
        self.note = self.note if note is None else note
        if self.progress is not None:
            self.progress.update(self.task, advance=count, note=self.note)
        elif self.enabled and time.monotonic() - self.logged > LOG_EVERY_S:
            self.log()

    def log(self) -> None:
        """The line that stands in for the bar where there is no terminal."""
        self.logged = time.monotonic()
        self.complete = self.done >= self.total
        speed = (self.done - self.before) / max(1e-9, self.logged - self.began)
        left = (self.total - self.done) / max(1e-9, speed)
        text = (
            f"{self.label}: {self.done}/{self.total}, {rate(speed, self.unit)}, {left:.0f} s left {self.note}"
        )
        console.print(text.rstrip(), markup=False)


@contextmanager
def bar(label: str, total: int, unit: str, *, done: int = 0, enabled: bool = True) -> Iterator[Bar]:
    """A progress bar on a terminal, a line every half minute elsewhere, nothing when not enabled.

    `done` of the `total` items were finished by an earlier run.
    """
    if not (enabled and console.is_terminal):
        plain = Bar(total, label, unit, None, enabled, done)
        yield plain
        if enabled and total and not plain.complete:
            plain.log()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Rate(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield Bar(total, label, unit, progress, enabled, done)


def say(text: str, *, enabled: bool = True) -> None:
    """One line for the person at the terminal."""
    if enabled:
        console.print(text, markup=False, soft_wrap=True)
        sys.stderr.flush()
