"""Songs of prepared folders that win pairs, as training data: a crop of latents each."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffdpo.data.latents import check_latents, read_latents
from diffdpo.data.pairs import PairRow
from diffdpo.data.song_prompts import read_song_rows
from diffdpo.data.songs import SongRow, song_latents
from diffdpo.errors import DataError
from diffdpo.inputs import digest


class WinnerSongs:
    """The prepared songs that win pairs of a table. DataError for a song that is gone, or of another split.

    With `split` "" songs of all splits are taken, as for pairs that are validated on. With `channels` above 0,
    DataError for latents of another width, or that are missing.
    """

    def __init__(self, table: Path, pairs: Iterable[PairRow], *, split: str, channels: int = 0) -> None:
        rows = [row for row in pairs if row.songs]
        songs = read_winners(table, rows)
        for row in rows:
            _check_winner(row, songs[row.songs, row.winner], table, split)
        self.table = table
        if channels:
            check_latents((self._path(*key) for key in sorted(songs)), channels)

    def latents(self, row: PairRow, frames: int) -> Float[Tensor, "frame channel"]:
        """The crop of a pair's winner: `frames` frames, fewer where the song ends, in float32."""
        return read_latents(self._path(row.songs, row.winner), row.winner_start, row.winner_start + frames)

    def _path(self, folder: str, song: str) -> Path:
        return song_latents(self.table.parent / folder, song)


def read_winners(table: Path, rows: Sequence[PairRow]) -> dict[tuple[str, str], SongRow]:
    """The rows of the prepared songs that pairs name, by folder and id. DataError for a song that is gone."""
    songs: dict[tuple[str, str], SongRow] = {}
    for name in sorted({row.songs for row in rows if row.songs}):
        folder = read_song_rows(table.parent / name)
        for song in sorted({row.winner for row in rows if row.songs == name}):
            if song not in folder or folder[song].error:
                raise DataError(
                    f"{table}: names the song {song!r}, which {name} does not have; prepare it, or mine again"
                )
            songs[name, song] = folder[song]
    return songs


def _check_winner(row: PairRow, song: SongRow, table: Path, split: str) -> None:
    if split and song.split != split:
        raise DataError(
            f"{table}: the winner {song.id!r} is of the split {song.split!r}, which is not trained on; set "
            f"data.split={song.split}, or mine songs of the split {split!r}"
        )
    if not 0 <= row.winner_start < song.frames:
        raise DataError(
            f"{table}: its crop of {song.id!r} lies behind the end of the song; the song changed: mine again"
        )


def winners_digest(table: Path, rows: Sequence[PairRow]) -> list[Any]:
    """Identity of the prepared songs that win pairs, as a list of one digest; empty where there are none."""
    songs = read_winners(table, rows)
    if not songs:
        return []
    return [digest([(*key, row.frames, row.inputs, row.sha256) for key, row in sorted(songs.items())])]
