"""Generated songs one by one, each with its rating: for unpaired feedback, and for training on the best of them."""

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
    """One example."""

    latents: Float[Tensor, "frame channel"]
    row: Row
    rating: float
    weight: float
    name: str
    visit: int
    """In how many earlier epochs the song occurred."""


class RatedSongs:
    """Rows of a ratings table with the latents they point to.

    With `balance` even positions of the stream show liked songs and odd ones disliked songs, each in an order of
    its own, so that both make up half of every step however rare one of them is.
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
        """Pad to the longest song of the micro-batch; what is padded counts nowhere."""
        padded = torch.nn.utils.rnn.pad_sequence([e.latents for e in examples], batch_first=True)
        return Batch(
            latents=padded[:, None],
            frames=torch.tensor([len(e.latents) for e in examples])[:, None],
            rows=tuple((e.row,) for e in examples),
            positions=tuple(positions),
            weight=torch.tensor([e.weight for e in examples]),
            ids=tuple(e.name for e in examples),
            visits=tuple(e.visit for e in examples),
            score=torch.tensor([[e.rating] for e in examples]),
        )


def decided(rows: Sequence[RatingRow], margin: float) -> list[RatingRow]:
    """Rows that say something: neither zero nor below the margin in size."""
    kept = [row for row in rows if row.rating and abs(row.rating) >= margin]
    if not kept:
        raise DataError(f"no rating is {margin:g} or more away from zero; lower data.rated_margin")
    return kept


def best(rows: Sequence[RatingRow], share: float, per_prompt: int = 0) -> list[RatingRow]:
    """The songs in the best share of a table, at least one: what expert iteration trains on.

    Only songs better than usual are taken, and of each prompt at most `per_prompt` (0: any number): without such a
    cap, prompts that are easy by nature may fill the share.
    """
    songs = sorted(per_song(rows), key=lambda row: (-row.rating, row.samples, row.sample_id))
    wanted = max(1, math.floor(share * len(songs) + 1e-9))
    taken: Counter[tuple[str, str]] = Counter()
    kept: list[RatingRow] = []
    for row in songs:
        prompt = row.samples, row.prompt_id
        if len(kept) == wanted or row.rating <= 0:
            break
        if per_prompt and taken[prompt] == per_prompt:
            continue
        taken[prompt] += 1
        kept.append(row)
    if not kept:
        raise DataError("no song is rated above zero, so there is no best share to train on")
    return kept
