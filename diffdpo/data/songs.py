"""The songs table: one row a song of `prepare`, encoded or with the error."""

from dataclasses import dataclass
from pathlib import Path

from diffdpo.data.schema import TableSpec
from diffdpo.names import file_stem


@dataclass(frozen=True, kw_only=True)
class SongRow:
    """One song of a prepared dataset."""

    id: str
    """Id of the song; its files are named by it, shortened where it is long."""
    audio: str = ""
    """Path of the recording."""
    text: str = ""
    """Description of the song."""
    lyrics: str = ""
    """Lyrics of the song, as lines or LRC."""
    language: str = ""
    """Language of the lyrics."""
    controls: str = ""
    """JSON: the controls that the song is conditioned on (bpm, key, metre); empty in tables of older versions, in
    which lyrics and language are empty too."""
    license: str = ""
    """License of the recording."""
    attribution: str = ""
    """Attribution that the license requires."""
    split: str = "train"
    """`train`, `valid` or another part of the dataset that a run can choose."""
    group: str = ""
    """Songs of one group never fall on both sides of a split."""
    sha256: str = ""
    """Hash of the file of the recording."""
    audio_state: str = ""
    """Size and time of the recording's file when it was hashed; the same file is not hashed again."""
    inputs: str = ""
    """Digest of what latents and embeddings were made from: recording, texts and model; empty in tables of older
    versions."""
    frames: int = 0
    """Length of the latents, in frames."""
    duration_s: float = 0.0
    """Length of the recording, in seconds."""
    error: str = ""
    """Why the song could not be prepared; empty on success."""


SONGS = TableSpec("songs", SongRow, key=("id",))


def song_latents(folder: Path, song_id: str) -> Path:
    """Path of the latents of a song of a prepared dataset."""
    return folder / "latents" / f"{file_stem(song_id)}.safetensors"


def song_embeddings(folder: Path, song_id: str) -> Path:
    """Path of the embeddings of a song of a prepared dataset."""
    return folder / "embeddings" / f"{file_stem(song_id)}.safetensors"


def song_files(folder: Path, song_id: str) -> list[Path]:
    """Paths of all files of a song of a prepared dataset."""
    return [song_latents(folder, song_id), song_embeddings(folder, song_id)]
