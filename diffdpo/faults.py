"""Whose fault an error is: one song's, which is recorded and skipped, or the system's, which ends the run."""

import errno

from diffdpo.errors import UserError

SYSTEM_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENFILE}


def song_fault(error: Exception) -> str:
    """The reason, in one line, why a song cannot be used; raises the error again where it is not the song's fault.

    A full disk, forbidden writing, too many open files and want of memory are the system's; they would befall the
    next song as well.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SYSTEM_CODES):
        raise error
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
