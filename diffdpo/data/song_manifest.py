"""The songs that `prepare` encodes: the files of a folder, or the lines of a JSONL manifest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffdpo.data.lyrics_files import read_lyrics
from diffdpo.data.prompts import in_share
from diffdpo.data.sidecars import read_sidecars
from diffdpo.errors import DataError
from diffdpo.names import add_id, slugs
from diffdpo.progress import log
from diffdpo.registry import closest
from diffdpo.text_files import check_text, read_jsonl
from diffdpo.types import CONTROLS, Control

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Files that are songs; of several recordings of one name in a folder the first of these is taken."""
SONG_CONTROLS = ("bpm", "key", "metre")
"""Keys of a song that are controls of its prompt."""
SONG_TEXTS = ("id", "audio", "text", "lyrics", "language", "license", "attribution", "split", "group")
SONG_KEYS = (*SONG_TEXTS, *SONG_CONTROLS)
MAX_LINES = 5
"""Lines about recordings that are left out, before the remaining ones are counted only."""


@dataclass(frozen=True, kw_only=True)
class SongEntry:
    """A song to be encoded: one line of a manifest, or a file of a folder."""

    id: str
    audio: Path
    text: str = ""
    lyrics: str = ""
    language: str = ""
    license: str = ""
    attribution: str = ""
    split: str = ""
    group: str = ""
    controls: tuple[tuple[str, Control], ...] = ()
    """Tempo, key and metre as sorted pairs of name and value."""
    fault: str = ""
    """Why what stands beside the recording cannot be used; empty if it can."""


def read_songs(path: Path, valid_share: float, report: Callable[[str], None] = log) -> list[SongEntry]:
    """The songs of a manifest or of a folder, each with a split; `report` is told which recordings are left out.

    DataError with file and line for a line that is no song, and for an id that cannot name files or is used twice.
    """
    songs = _folder_songs(path, report) if path.is_dir() else _manifest_songs(path)
    if not songs:
        raise DataError(
            f"{path}: no songs here; give a folder with {', '.join(SUFFIXES)} files or a JSONL manifest"
        )
    return [_with_split(song, valid_share) for song in songs]


def _with_split(song: SongEntry, valid_share: float) -> SongEntry:
    group = song.group or song.id
    split = song.split or ("valid" if in_share(group, valid_share, "split") else "train")
    return replace(song, group=group, split=split)


def _folder_songs(folder: Path, report: Callable[[str], None]) -> list[SongEntry]:
    """A song for each name in each folder below; its id is unique and does not depend on the other files, unless
    these would have the same."""
    recordings: dict[Path, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and not file.is_dir():
            recordings.setdefault(file.with_suffix(""), []).append(file)
    files = [_choose(group) for group in recordings.values()]
    lines = [
        f"{file}: left out; {recording.name} is the same song"
        for recording, group in zip(files, recordings.values(), strict=True)
        for file in group
        if file != recording
    ]
    for line in lines[:MAX_LINES]:
        report(line)
    if len(lines) > MAX_LINES:
        report(f"… and {len(lines) - MAX_LINES} more recordings of songs that are there in another format")
    ids: dict[str, str] = {}
    songs = []
    for file, name in zip(files, slugs([file.relative_to(folder) for file in files]), strict=True):
        add_id(ids, name, str(file))
        songs.append(_with_sidecars(SongEntry(id=name, audio=file)))
    return songs


def _with_sidecars(song: SongEntry) -> SongEntry:
    try:
        values = read_sidecars(song.audio)
    except DataError as error:
        return replace(song, fault=str(error))
    controls = tuple(sorted((key, values.pop(key)) for key in SONG_CONTROLS if key in values))
    return replace(song, controls=controls, **values)


def _choose(recordings: Sequence[Path]) -> Path:
    """Of several recordings of one song, the one in the format that loses least."""
    return min(recordings, key=lambda file: (SUFFIXES.index(file.suffix.lower()), file.name))


def _manifest_songs(path: Path) -> list[SongEntry]:
    ids: dict[str, str] = {}
    songs = []
    for number, row in read_jsonl(path):
        song = _entry(row, f"{path}:{number}", path.parent)
        add_id(ids, song.id, f"{path}:{number}")
        songs.append(song)
    return songs


def _entry(row: dict[str, Any], location: str, folder: Path) -> SongEntry:
    for key, value in row.items():
        if key not in SONG_KEYS:
            hint = f"{closest(key, SONG_KEYS)} Known: {', '.join(SONG_KEYS)}."
            raise DataError(f"{location}: unknown key {key!r}.{hint}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
            raise DataError(f"{location}: {key} must be a string, got {value!r}")
    for key in ("id", "audio"):
        if row.get(key) in (None, ""):
            raise DataError(f"{location}: a song needs {key!r}")
    controls = tuple(sorted((key, row[key]) for key in SONG_CONTROLS if row.get(key) is not None))
    for key, value in controls:
        if not CONTROLS[key].accepts(value):
            raise DataError(f"{location}: {key} must be {CONTROLS[key].description}, got {value!r}")
    values = {key: str(value) for key, value in row.items() if value is not None and key not in SONG_CONTROLS}
    audio = folder / values.pop("audio")
    for key, text in values.items():
        check_text(text, key, location)
    values["lyrics"] = read_lyrics(values.get("lyrics", ""), folder, location)
    return SongEntry(audio=audio, controls=controls, **values)
