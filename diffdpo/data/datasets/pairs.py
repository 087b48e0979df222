"""Preference pairs as training examples: the latents of winner and loser, and the row of condition of each.

A winner that is a song of a prepared folder is cropped where the table says, to the length of the loser, and has
the loser's condition: the caption, asked for at the loser's length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.data import tables
from diffdpo.data.datasets.generated import GeneratedSongs, Source
from diffdpo.data.datasets.parts import ALL_PROMPTS, Part, group_of
from diffdpo.data.datasets.winners import WinnerSongs
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.errors import DataError
from diffdpo.randomness import draw_uniform
from diffdpo.types import Batch, Row


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """A pair as a training example."""

    winner: Float[Tensor, "winner_frame channel"]
    loser: Float[Tensor, "loser_frame channel"]
    rows: tuple[Row, ...]
    """Rows of condition of winner and loser."""
    reference_rows: tuple[Row, ...]
    """The same rows without an axis, for the reference, which is not conditioned on axes."""
    id: str
    soft_label: float
    axis: str
    spans: tuple[tuple[float, float], ...]


def sorted_pairs(path: Path, part: Part = ALL_PROMPTS) -> list[PairRow]:
    """The rows of a part of a pairs table, in the order in which training numbers them."""
    rows = part.select(tables.read_rows(path.parent, PAIRS), path)
    return sorted(rows, key=lambda row: (row.prompt_id, row.winner, row.loser))


class Pairs:
    """A pairs table with the latents of its songs.

    With `axis_condition` the policy is conditioned on the axis that a pair was chosen on, but for a share
    `axis_dropout` of the examples: one model then learns every axis by itself, for prompts that name one, and
    their union, for prompts that name none. `split` is that of prepared songs among the winners; "" for any.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        *,
        axis_condition: bool = False,
        axis_dropout: float = 0.0,
        part: Part = ALL_PROMPTS,
        split: str = "",
    ) -> None:
        self.rows = sorted_pairs(path, part)
        if not self.rows:
            raise DataError(f"{path}: holds no pairs; run `diffdpo mine` first, or mine with smaller margins")
        self.path, self.source, self.axis_dropout = path, source, axis_dropout
        self.axes = tuple(sorted({axis for row in self.rows if (axis := row.axis)}))
        if axis_condition and not self.axes:
            raise DataError(
                f"{path}: no pair names an axis; mine with a rule that chooses on single axes, or leave "
                "data.axis_condition out"
            )
        self.axis_condition = axis_condition
        self.winners = WinnerSongs(path, self.rows, split=split, channels=source.channels)
        songs = [(row.samples, song) for row in self.rows for song in row.generated]
        self.songs = GeneratedSongs(path, songs, source, self.axes if axis_condition else ())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def groups(self) -> frozenset[str]:
        """The groups of the prompts."""
        return frozenset(group_of(row) for row in self.rows)

    @property
    def has_spans(self) -> bool:
        """Whether any pair has spans."""
        return any(row.spans for row in self.rows)

    @property
    def has_soft_labels(self) -> bool:
        """Whether any pair has a soft label below 1."""
        return any(row.soft_label != 1.0 for row in self.rows)

    def example(self, index: int, position: int) -> PairExample:
        """The pair at `index`; `axis_dropout` is drawn by the position in the training stream."""
        row, songs = self.rows[index], self.songs
        members = (row.loser, row.loser) if row.songs else (row.winner, row.loser)
        axis = row.axis if self._names_axis(position) else ""
        winner, loser = self._latents(row)
        return PairExample(
            winner=winner,
            loser=loser,
            rows=tuple(songs.row(row.samples, song, axis) for song in members),
            reference_rows=tuple(songs.row(row.samples, song) for song in members),
            id=pair_id(row),
            soft_label=row.soft_label,
            axis=row.axis,
            spans=row.spans,
        )

    def _latents(
        self, row: PairRow
    ) -> tuple[Float[Tensor, "winner_frame channel"], Float[Tensor, "loser_frame channel"]]:
        """The latents of winner and loser; equally many frames if the winner is a song of a prepared folder."""
        loser = self.songs.latents(row.samples, row.loser)
        if not row.songs:
            return self.songs.latents(row.samples, row.winner), loser
        winner = self.winners.latents(row, len(loser))
        return winner, loser[: len(winner)]

    def _names_axis(self, position: int) -> bool:
        """Whether the policy is conditioned on the axis of the example at a position."""
        if not self.axis_condition:
            return False
        return float(draw_uniform(self.source.seed, [position], "drop-axis")) >= self.axis_dropout

    def collate(self, examples: Sequence[PairExample], positions: Sequence[int]) -> Batch:
        """A batch of pairs; see `collate_pairs`."""
        return collate_pairs(
            examples,
            positions,
            epoch=len(self),
            frames_per_second=self.source.frames_per_second,
            with_reference_rows=self.axis_condition,
        )


def pair_id(row: PairRow) -> str:
    """The name of a pair, the same in every run on its table."""
    winner = f"{row.songs}|{row.winner}@{row.winner_start}" if row.songs else row.winner
    return f"{row.samples}|{winner}|{row.loser}"


def collate_pairs(
    examples: Sequence[PairExample],
    positions: Sequence[int],
    *,
    epoch: int,
    frames_per_second: float,
    with_reference_rows: bool = False,
) -> Batch:
    """A batch of pairs, padded to its longest song; `epoch` is the number of pairs of an epoch."""
    members = [song for example in examples for song in (example.winner, example.loser)]
    latents = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
    length = latents.shape[1]
    reference_rows = tuple(example.reference_rows for example in examples)
    return Batch(
        latents=latents.unflatten(0, (len(examples), 2)),
        frames=torch.tensor([len(member) for member in members]).view(-1, 2),
        rows=tuple(example.rows for example in examples),
        reference_rows=reference_rows if with_reference_rows else None,
        positions=tuple(positions),
        ids=tuple(example.id for example in examples),
        visits=tuple(position // epoch for position in positions),
        axes=tuple(example.axis for example in examples),
        span=torch.stack([span_mask(example.spans, length, frames_per_second) for example in examples]),
        weight=torch.ones(len(examples)),
        soft_label=torch.tensor([example.soft_label for example in examples]),
    )


def span_mask(
    spans: Sequence[tuple[float, float]], length: int, frames_per_second: float
) -> Bool[Tensor, " {length}"]:
    """A mask of the frames that overlap one of the spans in seconds; all frames without spans."""
    if not spans:
        return torch.ones(length, dtype=torch.bool)
    index = torch.arange(length)
    inside = torch.zeros(length, dtype=torch.bool)
    for start, stop in spans:
        inside |= (index + 1 > start * frames_per_second) & (index < stop * frames_per_second)
    return inside
