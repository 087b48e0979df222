"""Songs to be prepared: the lines of a manifest, or the audio files of a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffdpo.data.prompts import in_share
from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.runs import read_jsonl

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
KEYS = ("id", "audio", "text", "lyrics", "language", "license", "attribution", "split", "group")


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


def read_songs(path: Path, valid_share: float) -> list[SongEntry]:
    """The songs of a manifest or of a folder, each with a split."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        songs = [SongEntry(id=_slug(file.relative_to(path)), audio=file) for file in files]
    else:
        songs = [_entry(row, f"{path}:{number}", path.parent) for number, row in read_jsonl(path)]
    if not songs:
        raise DataError(
            f"{path}: no songs here; give a folder with {', '.join(SUFFIXES)} files or a JSONL manifest"
        )
    by_id: dict[str, SongEntry] = {}
    for song in songs:
        if song.id in by_id:
            raise DataError(f"{path}: the id {song.id!r} is used twice; ids name files and must differ")
        group = song.group or song.id
        split = song.split or ("valid" if in_share(group, valid_share, "split") else "train")
        by_id[song.id] = replace(song, group=group, split=split)
    return list(by_id.values())


def _slug(path: Path) -> str:
    return "-".join([*path.parent.parts, path.stem])


def _entry(row: dict[str, Any], location: str, folder: Path) -> SongEntry:
    for key in row:
        if key not in KEYS:
            raise DataError(f"{location}: unknown key {key!r}.{closest(key, KEYS)} Known: {', '.join(KEYS)}.")
    for key in ("id", "audio"):
        if not row.get(key):
            raise DataError(f"{location}: a song needs {key!r}")
    values = {key: str(value) for key, value in row.items() if value is not None and key != "audio"}
    return SongEntry(audio=folder / row["audio"], **values)
