"""Prepared songs as training examples: crops of latents with their style, lyrics and place in the song."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data import tables
from diffdpo.data.latents import read_latents, read_tensor
from diffdpo.data.prompts import lines_within
from diffdpo.data.songs import SONGS, SongRow
from diffdpo.errors import DataError
from diffdpo.randomness import draw_uniform
from diffdpo.types import Batch, Prompt


@dataclass(frozen=True)
class CropConfig:
    """Which part of a song one example shows."""

    min_frames: int = 384
    max_frames: int = 384
    """Length of a crop, drawn uniformly between the two. A shorter song is taken whole."""
    bucket: int = 1
    """So many examples in a row share a length: set it to the global batch, and nothing is padded."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise ValueError("crop needs 1 <= min_frames <= max_frames")
        if self.bucket < 1:
            raise ValueError(f"crop.bucket must be at least 1, got {self.bucket}")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One example."""

    latents: Float[Tensor, "frame channel"]
    prompt: Prompt


class Songs:
    """A prepared dataset. Crops, styles and lengths are drawn per position of the stream."""

    def __init__(
        self, folder: Path, *, split: str, crop: CropConfig, frames_per_second: float, seed: int
    ) -> None:
        rows = [row for row in tables.read_rows(folder, SONGS) if row.split == split and not row.error]
        if not rows:
            raise DataError(
                f"{folder}: holds no prepared songs of the split {split!r}; run `diffdpo prepare` first"
            )
        self.folder, self.crop, self.seed, self.rate = folder, crop, seed, frames_per_second
        # Long songs hold more crops: a song stands in an epoch once for every crop length it has.
        self.rows = [row for row in sorted(rows, key=lambda row: row.id) for _ in range(self._visits(row))]

    def _visits(self, row: SongRow) -> int:
        return max(1, round(row.frames / self.crop.max_frames))

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, position: int) -> Crop:
        row, path = self.rows[index], self.folder / "latents" / f"{self.rows[index].id}.safetensors"
        draws = {p: float(draw_uniform(self.seed, [position], p)) for p in ("crop-start", "style")}
        length = min(row.frames, self._length(position))
        start = int(draws["crop-start"] * (row.frames - length + 1))
        styles = read_tensor(path, "styles")
        variants, windows, _ = styles.shape
        window = min(windows - 1, int((start + length / 2) / row.frames * windows))
        prompt = Prompt(
            id=row.id,
            style=styles[int(draws["style"] * variants), window],
            lyric_lines=lines_within(
                json.loads(row.lyric_lines), start / self.rate, (start + length) / self.rate
            ),
            duration_s=length / self.rate,
            start=start / row.frames,
            group=row.group,
        )
        return Crop(latents=read_latents(path, start, start + length), prompt=prompt)

    def _length(self, position: int) -> int:
        """The crop length of a position, the same over its bucket."""
        share = float(draw_uniform(self.seed, [position // self.crop.bucket], "crop-length"))
        return self.crop.min_frames + int(share * (self.crop.max_frames - self.crop.min_frames + 1))

    def collate(self, examples: Sequence[Crop], positions: Sequence[int]) -> Batch:
        """Pad to the longest song of the micro-batch; what is padded counts nowhere."""
        lengths = [len(example.latents) for example in examples]
        latents = torch.nn.utils.rnn.pad_sequence([e.latents for e in examples], batch_first=True)
        return Batch(
            latents=latents[:, None],
            frames=torch.tensor(lengths)[:, None],
            prompts=tuple(e.prompt for e in examples),
            positions=tuple(positions),
            weight=torch.ones(len(examples)),
        )
