"""Compiled code on disk: one folder for each process that is alive.

librosa's inner loops are compiled by numba when they are first used, and the result is kept in files. Processes
that compile at the same time into one folder mix their files up, and every later process that loads them ends with
a segmentation fault. So each process takes the lowest folder that no living process holds, and finds in it what an
earlier process left there: one process after the other always uses folder 0, two at a time use folders 0 and 1.
"""

import os
from pathlib import Path

FOLDER_VARIABLE = "NUMBA_CACHE_DIR"
OWNER_VARIABLE = "DIFFDPO_COMPILE_CACHE"
"""Set to the same folder where NUMBA_CACHE_DIR was set here and not by the user; child processes read it."""
_locks: list[int] = []
"""Open files whose locks end with the process."""


def reserve_compile_cache() -> Path | None:
    """Point numba to this process's own folder, until the process ends. To be called before numba is imported.

    The folders lie in `$XDG_CACHE_HOME/diffdpo/numba`, by default `~/.cache/diffdpo/numba`, or below the folder of
    temporary files where that cannot be written. None, and nothing changed, where the user has set
    NUMBA_CACHE_DIR, or where the system has no file locks of Unix. A child process takes a folder of its own.
    """
    parent = os.environ.get(OWNER_VARIABLE)
    if os.environ.get(FOLDER_VARIABLE) and (parent is None or parent != os.environ[FOLDER_VARIABLE]):
        return None
    folder = _lowest_free(_cache_home() / "diffdpo" / "numba") or _lowest_free(_temporary())
    if folder is not None:
        os.environ[FOLDER_VARIABLE] = os.environ[OWNER_VARIABLE] = str(folder)
    return folder


def _lowest_free(root: Path) -> Path | None:
    try:
        import fcntl

        root.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            lock = os.open(root / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                number += 1
                continue
            _locks.append(lock)
            folder = root / str(number)
            folder.mkdir(exist_ok=True)
            return folder
    except (ImportError, OSError):
        return None


def _cache_home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) if home else Path("~").expanduser() / ".cache"


def _temporary() -> Path:
    import tempfile

    return Path(tempfile.gettempdir()) / f"diffdpo-numba-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
