"""Preference pairs as training examples: the latents of winner and loser, and the prompt they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.data import tables
from diffdpo.data.latents import read_latents
from diffdpo.data.pairs import PAIRS
from diffdpo.data.samples import open_named
from diffdpo.errors import DataError
from diffdpo.types import Batch, Prompt


@dataclass(frozen=True, kw_only=True)
class PairExample:
    winner: Float[Tensor, "winner_frame channel"]
    loser: Float[Tensor, "loser_frame channel"]
    id: str
    prompt: Prompt
    soft_label: float
    axis: str
    spans: tuple[tuple[float, float], ...]


class Pairs:
    """A pairs table with the latents it points to. Prompts are embedded once, here."""

    def __init__(self, path: Path, embed: Callable[[Prompt], Prompt], frames_per_second: float) -> None:
        self.rows = sorted(
            tables.read_rows(path.parent, PAIRS), key=lambda row: (row.prompt_id, row.winner, row.loser)
        )
        if not self.rows:
            raise DataError(f"{path}: holds no pairs; run `diffdpo mine` first, or mine with smaller margins")
        self.path, self.rate = path, frames_per_second
        self.axes = tuple(sorted({axis for row in self.rows if (axis := row.axis)}))
        self.samples, self.prompts = open_named(path, self.rows, embed)

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, position: int) -> PairExample:
        row = self.rows[index]
        samples = self.samples[row.samples]
        return PairExample(
            winner=read_latents(samples.latents(row.winner)),
            loser=read_latents(samples.latents(row.loser)),
            id="|".join(getattr(row, name) for name in PAIRS.key),
            prompt=self.prompts[row.samples, row.prompt_id],
            soft_label=row.soft_label,
            axis=row.axis,
            spans=row.spans,
        )

    def collate(self, examples: Sequence[PairExample], positions: Sequence[int]) -> Batch:
        members = [side for example in examples for side in (example.winner, example.loser)]
        padded = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
        return Batch(
            latents=padded.unflatten(0, (len(examples), 2)),
            frames=torch.tensor([len(member) for member in members]).view(-1, 2),
            prompts=tuple(example.prompt for example in examples),
            positions=tuple(positions),
            ids=tuple(example.id for example in examples),
            visits=tuple(position // len(self) for position in positions),
            axes=tuple(example.axis for example in examples),
            span=torch.stack([self._span(example, padded.shape[1]) for example in examples]),
            weight=torch.ones(len(examples)),
            soft_label=torch.tensor([example.soft_label for example in examples]),
        )

    def _span(self, example: PairExample, length: int) -> Bool[Tensor, " {length}"]:
        """The frames a pair is about: those that overlap one of its stretches; all if it names none."""
        if not example.spans:
            return torch.ones(length, dtype=torch.bool)
        index = torch.arange(length)
        inside = torch.zeros(length, dtype=torch.bool)
        for start, stop in example.spans:
            inside |= (index + 1 > start * self.rate) & (index < stop * self.rate)
        return inside
