"""Lyrics in prompts and manifests: the words themselves, or the name of a file with them."""

import re
from pathlib import Path

from diffdpo.errors import DataError
from diffdpo.text_files import read_text

LYRICS_SUFFIXES = (".lrc", ".txt")
OTHER_SUFFIXES = (
    ".srt", ".vtt", ".ass", ".ssa", ".sbv", ".sub", ".smi", ".ttml", ".dfxp", ".elrc", ".klrc", ".krc", ".qrc",
    ".yrc", ".trc", ".ksc", ".json", ".jsonl", ".yaml", ".yml", ".xml", ".csv", ".tsv", ".md", ".rtf", ".doc",
    ".docx", ".odt", ".pages", ".pdf", ".htm", ".html", ".tex", ".cho", ".chordpro", ".mxl", ".musicxml", ".mid",
    ".wav", ".flac", ".mp3", ".ogg", ".opus",
)  # fmt: skip
"""Suffixes of files that hold lyrics in a form that is not read here, or none."""
PATH_TEXT = re.compile(r"(~?/|\.{1,2}/|[A-Za-z]:\\|\\\\)\S+|\S+[/\\]\S+\.[A-Za-z]\w{0,4}")


def is_file_name(lyrics: str) -> bool:
    """Whether lyrics look like the name of a file, in any case of letters: such words are never sung."""
    name = lyrics.strip()
    if len(name.splitlines()) != 1 or name.startswith("["):
        return False
    return name.lower().endswith((*LYRICS_SUFFIXES, *OTHER_SUFFIXES)) or bool(PATH_TEXT.fullmatch(name))


def read_lyrics(lyrics: str, folder: Path, location: str) -> str:
    """The words of lyrics; of a name in .lrc or .txt, those in the file, relative to `folder`.

    DataError at `location` for a file that is missing, not UTF-8 or of another kind.
    """
    if not is_file_name(lyrics):
        return lyrics
    path = folder / lyrics.strip()
    if not lyrics.strip().lower().endswith(LYRICS_SUFFIXES):
        raise DataError(
            f"{location}: lyrics {path}: a file of this kind is not read; save it as .lrc or .txt"
        )
    try:
        return read_text(path)
    except DataError as error:
        raise DataError(f"{location}: lyrics {error}") from None
