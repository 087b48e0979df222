"""Generated songs with ratings as training examples: for unpaired feedback, and training on the best songs."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.datasets.generated import GeneratedSongs, Source
from diffdpo.data.datasets.stream import index_at
from diffdpo.data.ratings import RATINGS, RatingRow, per_song
from diffdpo.errors import DataError
from diffdpo.types import Batch, Row


@dataclass(frozen=True, kw_only=True)
class RatedSong:
    """One example: a song with its rating."""

    latents: Float[Tensor, "frame channel"]
    row: Row
    rating: float
    weight: float
    name: str
    visit: int
    """Number of earlier epochs with the song."""


class RatedSongs:
    """Rows of a ratings table with the latents of their songs.

    With `balance`, even positions of the stream are liked songs and odd positions disliked songs, each in a
    separate order, so that both are half of every step however rare either is.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[RatingRow],
        source: Source,
        *,
        balance: bool,
    ) -> None:
        self.rows, self.seed = list(rows), source.seed
        songs = [(row.samples, row.sample_id) for row in self.rows]
        self.songs = GeneratedSongs(folder / RATINGS.folder, songs, source)
        self.sides: tuple[list[int], ...] = (list(range(len(self.rows))),)
        if balance:
            signs = [row.rating > 0 for row in self.rows]
            self.sides = tuple([i for i, sign in enumerate(signs) if sign is side] for side in (True, False))
            if not all(self.sides):
                kind = "liked" if self.sides[0] else "disliked"
                raise DataError(
                    f"{folder / RATINGS.folder}: all {len(self.rows)} songs are {kind}; "
                    "data.balance needs both kinds"
                )

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, position: int) -> RatedSong:
        turn, side = divmod(position, len(self.sides))
        rows = self.sides[side]
        if len(self.sides) > 1:
            index = rows[index_at(turn, len(rows), self.seed)]
        row = self.rows[index]
        return RatedSong(
            latents=self.songs.latents(row.samples, row.sample_id),
            row=self.songs.row(row.samples, row.sample_id),
            rating=row.rating,
            weight=row.weight,
            name=f"{row.samples}/{row.sample_id}/{row.source}",
            visit=turn // len(rows),
        )

    def collate(self, examples: Sequence[RatedSong], positions: Sequence[int]) -> Batch:
        """A batch of songs, padded to the longest of the micro-batch; padding has no effect on the loss."""
        latents = torch.nn.utils.rnn.pad_sequence([e.latents for e in examples], batch_first=True)
        return Batch(
            latents=latents[:, None],
            frames=torch.tensor([len(e.latents) for e in examples])[:, None],
            rows=tuple((e.row,) for e in examples),
            positions=tuple(positions),
            weight=torch.tensor([e.weight for e in examples]),
            ids=tuple(e.name for e in examples),
            visits=tuple(e.visit for e in examples),
            score=torch.tensor([[e.rating] for e in examples]),
        )


def filter_decisive(rows: Sequence[RatingRow], margin: float) -> list[RatingRow]:
    """The rows whose ratings are neither zero nor below the margin in size. DataError if there are none."""
    selection = [row for row in rows if row.rating and abs(row.rating) >= margin]
    if not selection:
        raise DataError(f"no rating is {margin:g} or more away from zero; lower data.rated_margin")
    return selection


def select_best(rows: Sequence[RatingRow], share: float, per_prompt: int = 0) -> list[RatingRow]:
    """The songs in the best share of a table, at least one, for expert iteration. DataError if there are none.

    The selection has songs with positive ratings only, and at most `per_prompt` of each prompt (0: any number):
    without such a cap, easy prompts may fill the share.
    """
    songs = sorted(per_song(rows), key=lambda row: (-row.rating, row.samples, row.sample_id))
    n_best = max(1, math.floor(share * len(songs) + 1e-9))
    prompt_counts: Counter[tuple[str, str]] = Counter()
    selection: list[RatingRow] = []
    for row in songs:
        prompt = row.samples, row.prompt_id
        if len(selection) == n_best or row.rating <= 0:
            break
        if per_prompt and prompt_counts[prompt] == per_prompt:
            continue
        prompt_counts[prompt] += 1
        selection.append(row)
    if not selection:
        raise DataError("no song is rated above zero, so there is no best share to train on")
    return selection
