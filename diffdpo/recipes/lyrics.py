"""Look at lyrics before a model does, and give times to lyrics that have none."""

from pathlib import Path

from diffdpo import runs
from diffdpo.errors import DataError
from diffdpo.lyrics.front_end import front_end, parse_lrc
from diffdpo.lyrics.timing import LyricsPlan, plan_lyrics, to_lrc
from diffdpo.progress import say

END_S = 24 * 3600.0
"""Behind every song."""


def check(path: str, duration_s: float | None, vocabulary: str = "", language: str | None = None) -> None:
    """Print the timed lines of an LRC file, with a vocabulary their phonemes too; DataError if there is none."""
    text = read(path)
    lrc = parse_lrc(text, duration_s=duration_s)
    lines, warnings = [(line.start_s, line.words) for line in lrc.lines], lrc.warnings
    reader = front_end(vocabulary)
    if reader is not None and lines:
        encoded = reader.encode(text, language, END_S if duration_s is None else duration_s)
        spoken = zip(encoded.lines, encoded.phonemes, strict=True)
        lines, warnings = [(start, " ".join(phones)) for (start, _), phones in spoken], encoded.warnings
    for warning in warnings:
        say(f"warning: {path}: {warning}")
    if not lines:
        raise DataError(f"{path}: no line of the form [mm:ss.xx]words")
    for start, words in lines:
        print(f"{start:8.2f}  {words}")


def make_plan(path: str, duration_s: float, tempo: float, out: str, force: bool = False) -> LyricsPlan:
    """Write lyrics without times as an LRC; to the terminal without a file name. An edited file is not lost."""
    try:
        song = plan_lyrics(read(path), duration_s, tempo=tempo)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for warning in song.warnings:
        say(f"warning: {path}: {warning}")
    if not out:
        print(to_lrc(song), end="")
        return song
    if Path(out).exists() and not force:
        raise DataError(f"{out}: exists; it may have been edited, so --force is needed to write it again")
    runs.atomic_write(Path(out), to_lrc(song))
    say(f"{out}: {len(song.lines)} lines in {duration_s:g} s at {tempo:g} beats a minute")
    return song


def read(path: str) -> str:
    """A text file, or a one-line error."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
