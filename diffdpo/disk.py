"""Full and read-only disks behind the errors of libraries that write files.

safetensors, torch and libsndfile report what the system said in words of their own, or not at all. Code that saves
through them does so within `disk_errors`, which raises the system's error.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffdpo.errors import UserError

DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""No space, quota exceeded, read-only file system, file larger than the system allows."""
PROBE_BYTES = 1 << 22
"""Bytes that are written to learn whether a disk is full; more than a file system rounds up to."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """OSError with the path instead of a library's error, where a disk was the cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = find_disk_error(error, path)
        if cause is None:
            raise
        raise cause from error


def find_disk_error(error: BaseException, path: Path) -> OSError | None:
    """The system's error behind a library's, while saving to `path`; None if the disk was not the cause.

    It is searched for in the chain of causes, in their messages, and by writing a few megabytes beside the path.
    """
    chain = list(_chain(error))
    numbers = [link.errno for link in chain if isinstance(link, OSError)]
    for text in map(str, chain):
        numbers += [int(number) for number in re.findall(r"os error (\d+)", text)]
        numbers += [number for number in DISK_ERRNOS if os.strerror(number) in text]
    for number in numbers:
        if number in DISK_ERRNOS:
            return OSError(number, os.strerror(number), str(path))
    return None if isinstance(error, OSError) else _probe(path)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause or context, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _probe(path: Path) -> OSError | None:
    """The system's error when some bytes are written into the folder of a path, if it is one of a disk."""
    folder = path if path.is_dir() else path.parent
    file = folder / f".probe.{os.getpid()}.partial"
    try:
        with file.open("wb") as stream:
            stream.write(bytes(PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno in DISK_ERRNOS:
            return OSError(error.errno, os.strerror(error.errno), str(path))
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
    return None
