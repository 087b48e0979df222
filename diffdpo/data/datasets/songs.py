"""Prepared songs as training examples: crops of latents with an embedding and their place in the song."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.data import tables
from diffdpo.data.latents import check_latents, read_latents
from diffdpo.data.song_embeddings import SongEmbeddings
from diffdpo.data.songs import SONGS, SongRow, song_embeddings, song_latents
from diffdpo.errors import DataError
from diffdpo.randomness import draw_uniform
from diffdpo.types import Batch, Row


@dataclass(frozen=True)
class CropConfig:
    """The length of the crop of a song that is one example."""

    min_frames: int = 384
    max_frames: int = 384
    """Largest length of a crop; lengths are uniform from min_frames to max_frames. Shorter songs stay whole."""
    bucket: int = 1
    """Number of consecutive examples with equal length; with the size of the global batch there is no padding."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise ValueError("crop needs 1 <= min_frames <= max_frames")
        check_range(self, "bucket", low=1, prefix="crop.")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One example: a crop of a song."""

    latents: Float[Tensor, "frame channel"]
    row: Row


class Songs:
    """A prepared dataset. Crops, embeddings and lengths are drawn by the position in the training stream.

    With `channels` above 0, DataError for latents of another width, or that are missing.
    """

    def __init__(self, folder: Path, *, split: str, crop: CropConfig, seed: int, channels: int = 0) -> None:
        rows = [row for row in tables.read_rows(folder, SONGS) if row.split == split and not row.error]
        if not rows:
            raise DataError(
                f"{folder}: holds no prepared songs of the split {split!r}; run `diffdpo prepare` first"
            )
        self.folder, self.crop, self.seed = folder, crop, seed
        if channels:
            check_latents((song_latents(folder, row.id) for row in rows), channels)
        # Long songs have more crops: an epoch has a song once for every crop length in it.
        self.rows = [row for row in sorted(rows, key=lambda row: row.id) for _ in range(self._visits(row))]
        self.embeddings = {row.id: SongEmbeddings(song_embeddings(folder, row.id)) for row in rows}

    def _visits(self, row: SongRow) -> int:
        return max(1, round(row.frames / self.crop.max_frames))

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, position: int) -> Crop:
        """A crop of a song, with the embedding of the window around its middle in a variant drawn at random."""
        row, embeddings = self.rows[index], self.embeddings[self.rows[index].id]
        draws = {p: float(draw_uniform(self.seed, [position], p)) for p in ("crop-start", "style")}
        length = min(row.frames, self._length(position))
        start = int(draws["crop-start"] * (row.frames - length + 1))
        window = int((start + length / 2) / row.frames * embeddings.windows)
        embedding = embeddings.read(
            int(draws["style"] * embeddings.variants), min(embeddings.windows - 1, window)
        )
        return Crop(
            latents=read_latents(song_latents(self.folder, row.id), start, start + length),
            row=Row(embedding=embedding, frames=length, first_frame=start, song_frames=row.frames),
        )

    def _length(self, position: int) -> int:
        """The crop length of a position, the same over its bucket."""
        share = float(draw_uniform(self.seed, [position // self.crop.bucket], "crop-length"))
        return self.crop.min_frames + int(share * (self.crop.max_frames - self.crop.min_frames + 1))

    def collate(self, examples: Sequence[Crop], positions: Sequence[int]) -> Batch:
        """A batch of crops, padded to the longest of the micro-batch; padding has no effect on the loss."""
        lengths = [len(example.latents) for example in examples]
        latents = torch.nn.utils.rnn.pad_sequence([e.latents for e in examples], batch_first=True)
        return Batch(
            latents=latents[:, None],
            frames=torch.tensor(lengths)[:, None],
            rows=tuple((e.row,) for e in examples),
            positions=tuple(positions),
            weight=torch.ones(len(examples)),
        )
