"""Prompts from the songs of a prepared folder: for each song its caption, to be answered by a model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffdpo.checks import check_range
from diffdpo.data import tables
from diffdpo.data.songs import SONGS, SongRow
from diffdpo.errors import DataError
from diffdpo.text_files import is_file
from diffdpo.types import Prompt


@dataclass(frozen=True)
class SongPrompts:
    """What is asked of a model about the songs of a prepared folder."""

    split: str = "train"
    """Split of the songs."""
    max_s: float = 0.0
    """Longest answer in seconds: the length of the window that is to be trained on. 0: as long as its song."""
    style: Literal["text", "sound", "both"] = "text"
    """What the answer is conditioned on beside lyrics and controls: the song's text, its recording, or both."""

    def __post_init__(self) -> None:
        check_range(self, "max_s", low=0, prefix="songs.")


def read_song_rows(folder: Path) -> dict[str, SongRow]:
    """The rows of a prepared folder by id. DataError for a folder without songs."""
    rows = {row.id: row for row in tables.read_rows(folder, SONGS)}
    if not rows:
        raise DataError(
            f"{folder}: holds no prepared songs; was it moved? Name a folder of `diffdpo prepare`"
        )
    return rows


def song_prompts(folder: Path, cfg: SongPrompts) -> list[Prompt]:
    """A prompt for each song of the split, with the song's id and group, in the order of ids.

    DataError for a folder without such songs, or from a version that did not keep what songs are conditioned on.
    """
    rows = [row for row in read_song_rows(folder).values() if row.split == cfg.split and not row.error]
    for row in rows:
        if not row.controls:
            raise DataError(
                f"{folder}: was prepared by an older diffdpo, which kept no lyrics and controls; run the same "
                "`diffdpo prepare` again, which adds them and encodes nothing anew"
            )
    prompts = [_prompt_of(row, cfg, folder) for row in rows if row.text or cfg.style != "text"]
    if rows and not prompts:
        raise DataError(f"{folder}: no song has a text; set songs.style=sound to answer to recordings")
    if not prompts:
        raise DataError(
            f"{folder}: holds no prepared songs of the split {cfg.split!r}; choose another with songs.split"
        )
    return sorted(prompts, key=lambda prompt: prompt.id)


def _prompt_of(row: SongRow, cfg: SongPrompts, folder: Path) -> Prompt:
    if cfg.style != "text" and not is_file(Path(row.audio)):
        raise DataError(f"{folder}: the recording {row.audio} of {row.id!r} is gone; set songs.style=text")
    try:
        return Prompt(
            id=row.id,
            text=row.text or None if cfg.style != "sound" else None,
            style_audio=row.audio if cfg.style != "text" else None,
            lyrics=row.lyrics or None,
            language=row.language or None,
            duration_s=min(row.duration_s, cfg.max_s or row.duration_s),
            controls=tuple(sorted(json.loads(row.controls).items())),
            group=row.group or row.id,
        )
    except ValueError as error:
        raise DataError(f"{folder}: song {row.id!r}: {error}") from None
