"""Locks of run directories: one run at a time writes into a folder.

The operating system holds a lock for a living process, so that the lock of a process that was killed is free. The
file of the lock, `.lock`, stays in the folder.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from diffdpo.errors import DataError
from diffdpo.runs import make_folder

LOCK = ".lock"
OPENING_S = 60.0
"""Seconds that a shard waits for another shard to open the folder."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[ExitStack]:
    """Hold a folder alone, without what killed runs left half-written. DataError while another run, or a shard of
    one, is at work in it.

    Yields an empty stack, as `lock_shard` yields one.
    """
    with ExitStack() as stack, ExitStack() as entry:
        stack.enter_context(_lock(folder / LOCK))
        for path in _shard_locks(folder):
            stack.enter_context(_lock(path))
        _remove_leftovers(folder)
        yield entry


@contextmanager
def lock_shard(folder: Path, shard: int, shards: int, *, wait_s: float = OPENING_S) -> Iterator[ExitStack]:
    """Hold one shard of a folder, beside other shards. DataError while an unsharded run, or the same shard, is at
    work in it.

    Other shards open the folder only after the stack that this yields is closed; they wait for it for `wait_s`
    seconds.
    """
    with ExitStack() as stack, ExitStack() as entry:
        entry.enter_context(_lock(folder / LOCK, wait_s=wait_s))
        stack.enter_context(_lock(_shard_lock(folder, shard, shards)))
        yield entry


def is_alone(folder: Path, shard: int, shards: int) -> bool:
    """Whether no other shard is at work in a folder. To be asked while no other shard can open the folder."""
    try:
        with ExitStack() as stack:
            for path in _shard_locks(folder):
                if path != _shard_lock(folder, shard, shards):
                    stack.enter_context(_lock(path))
    except DataError:
        return False
    return True


def _remove_leftovers(folder: Path) -> None:
    """Delete what a killed write leaves in a folder and in the folders in it that are no run directories."""
    folders = [path for path in folder.iterdir() if path.is_dir() and not (path / LOCK).exists()]
    for path in (path for parent in (folder, *folders) for path in parent.glob(".*.partial")):
        if path.is_file():
            path.unlink(missing_ok=True)


def _shard_lock(folder: Path, shard: int, shards: int) -> Path:
    return folder / f"{LOCK}-{shard}-of-{shards}"


def _shard_locks(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{LOCK}-*"))


@contextmanager
def _lock(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise DataError(
            f"{path.parent}: another run is at work here; wait until it has ended, or choose another out=…"
        ) from None
    try:
        yield
    finally:
        lock.release()
