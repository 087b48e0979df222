"""The command `lyrics`: show the lines and phonemes that a model would sing, and give times to plain lyrics."""

from pathlib import Path

from diffdpo import runs
from diffdpo.errors import DataError
from diffdpo.lyrics.front_end import front_end
from diffdpo.lyrics.lrc import parse_lrc
from diffdpo.lyrics.timing import LyricsPlan, plan_lyrics, to_lrc
from diffdpo.progress import log
from diffdpo.text_files import read_text

END_S = 24 * 3600.0
"""A time after the end of every song, for lyrics without a duration."""


def check_lyrics(
    path: str, duration_s: float | None, vocabulary: str = "", language: str | None = None
) -> None:
    """Print the timed lines of an LRC file, or with a vocabulary their phonemes; DataError without a line."""
    text = read_text(Path(path))
    lrc = parse_lrc(text, duration_s=duration_s)
    lines, warnings = [(line.start_s, line.words) for line in lrc.lines], lrc.warnings
    reader = front_end(vocabulary)
    if reader is not None and lines:
        encoding = reader.encode(text, language, END_S if duration_s is None else duration_s)
        phoneme_lines = zip(encoding.lines, encoding.phonemes, strict=True)
        lines, warnings = (
            [(start, " ".join(phones)) for (start, _), phones in phoneme_lines],
            encoding.warnings,
        )
    for warning in warnings:
        log(f"warning: {path}: {warning}")
    if not lines:
        raise DataError(f"{path}: no line of the form [mm:ss.xx]words")
    for start, words in lines:
        print(f"{start:8.2f}  {words}")


def make_plan(path: str, duration_s: float, tempo: float, out: str, force: bool = False) -> LyricsPlan:
    """Write lyrics without times as an LRC; to the terminal without a file name. An edited file is not lost."""
    text = read_text(Path(path))
    try:
        song = plan_lyrics(text, duration_s, tempo=tempo)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for warning in song.warnings:
        log(f"warning: {path}: {warning}")
    if not out:
        print(to_lrc(song), end="")
        return song
    if Path(out).exists() and not force:
        raise DataError(f"{out}: exists; it may have been edited, so --force is needed to write it again")
    runs.atomic_write(Path(out), to_lrc(song))
    log(f"{out}: {len(song.lines)} lines in {duration_s:g} s at {tempo:g} beats a minute")
    return song
