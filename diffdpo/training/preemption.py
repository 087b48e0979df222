"""Preemption: a run that is told to end saves its state and ends well, and the same command goes on from there.

A cluster's scheduler sends SIGTERM before it takes a machine away; SLURM sends SIGUSR1 some time earlier, where
`--signal=USR1@120` says so. The step that runs is finished, so that all processes save the same one.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffdpo.progress import log

SIGNALS = ("SIGTERM", "SIGUSR1")
"""What ends a run; a system without one of them never sends it."""


@dataclass
class StopRequest:
    """Whether one of the signals came."""

    names: list[str] = field(default_factory=list)

    def is_shared(self, accelerator: Accelerator) -> bool:
        """Whether it came to any process; the same answer on all of them, which must ask together."""
        if accelerator.num_processes == 1:
            return bool(self.names)
        own = torch.tensor([float(bool(self.names))], device=accelerator.device)
        total: Any = accelerator.reduce(own, "sum")
        return bool(total.item() > 0)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Signals are noted inside the `with`, and answered as before behind it.

    Outside of the main thread, where Python takes no signals, none is noted.
    """
    request, owner = StopRequest(), os.getpid()

    def note(number: int, frame: Any) -> None:
        if os.getpid() == owner:  # not in a process that was forked off to read data
            request.names.append(signal.Signals(number).name)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    handlers = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def leave(request: StopRequest, checkpoint: Path | None, accelerator: Accelerator) -> None:
    """End the program with exit code 0 after a checkpoint was saved; a line says where."""
    cause = " and ".join(sorted(set(request.names))) or "a signal to another process"
    log(
        f"{cause}: saved {checkpoint}; the same command resumes from it",
        visible=accelerator.is_main_process,
    )
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    raise SystemExit(0)
