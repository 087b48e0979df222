"""Look at lyrics before a model does."""

from pathlib import Path

from diffdpo.errors import DataError
from diffdpo.models.diffrhythm.lyrics import parse_lrc
from diffdpo.progress import say


def check(path: str, duration_s: float | None) -> None:
    """Print the timed lines of an LRC file; DataError if there is none."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    lrc = parse_lrc(Path(path).read_text(), duration_s=duration_s)
    for warning in lrc.warnings:
        say(f"warning: {path}: {warning}")
    if not lrc.lines:
        raise DataError(f"{path}: no line of the form [mm:ss.xx]words")
    for start, words in lrc.lines:
        print(f"{start:8.2f}  {words}")
