"""The songs table: one row a song that `prepare` encoded, or could not."""

from dataclasses import dataclass

from diffdpo.data.schema import TableSpec


@dataclass(frozen=True, kw_only=True)
class SongRow:
    """One song of a prepared dataset."""

    id: str
    """Names its file of latents."""
    audio: str = ""
    """Path of the recording."""
    text: str = ""
    """What the song is, in words."""
    license: str = ""
    """Under which the recording may be used."""
    attribution: str = ""
    """Whom to name, and how."""
    split: str = "train"
    """`train`, `valid` or another part of the dataset that a run can choose."""
    group: str = ""
    """Songs of one group never fall on both sides of a split."""
    sha256: str = ""
    """Hash of the file of the recording."""
    frames: int = 0
    """Length of the latents."""
    duration_s: float = 0.0
    """Length of the recording, in seconds."""
    error: str = ""
    """Why the song could not be prepared; empty if it was."""


SONGS = TableSpec("songs", SongRow, key=("id",))
