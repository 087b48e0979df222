"""Groups: several songs of one prompt with their advantages, for online reinforcement (NFT, AWM, DGPO) and RWR."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.datasets.generated import GeneratedSongs, Source
from diffdpo.data.ratings import MINED, RATINGS, RatingRow, per_song
from diffdpo.errors import DataError
from diffdpo.mining.scale import standard_scores
from diffdpo.randomness import generator
from diffdpo.types import Batch, Row


@dataclass(frozen=True, kw_only=True)
class Group:
    """One example."""

    latents: tuple[Float[Tensor, "_ channel"], ...]
    rows: tuple[Row, ...]
    advantages: tuple[float, ...]
    weight: float


class Groups:
    """The prompts of a ratings table that have `size` songs or more, each one example.

    An example shows `size` of them, drawn without replacement by its position in the stream. Advantages that
    follow from scores are taken as they are; people's ratings become standard deviations within the prompt.
    Prompts with too few songs, or with songs that are all equally good, are reported and left out.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[RatingRow],
        source: Source,
        *,
        size: int,
    ) -> None:
        self.size, self.seed = size, source.seed
        self.groups: list[list[RatingRow]] = []
        small, tied = [], []
        songs = sorted(per_song(rows), key=lambda row: (row.samples, row.prompt_id, row.sample_id))
        for (_, prompt), found in groupby(songs, key=lambda row: (row.samples, row.prompt_id)):
            group = _advantages(list(found))
            if len(group) < size:
                small.append(prompt)
            elif len({round(row.rating, 9) for row in group}) == 1:
                tied.append(prompt)
            else:
                self.groups.append(group)
        for left, reason in (
            (small, f"fewer than {size} rated songs"),
            (tied, "songs that are all rated alike"),
        ):
            if left:
                source.report(f"{len(left)} prompt(s) have {reason} and are left out, first {left[0]!r}")
        if not self.groups:
            raise DataError(
                f"{folder / RATINGS.folder}: no prompt has {size} songs of different rating; lower "
                "data.group_size, or sample more songs a prompt"
            )
        members = [(row.samples, row.sample_id) for group in self.groups for row in group]
        self.songs = GeneratedSongs(folder / RATINGS.folder, members, source)

    def __len__(self) -> int:
        return len(self.groups)

    def example(self, index: int, position: int) -> Group:
        group = self.groups[index]
        order = torch.randperm(len(group), generator=generator(self.seed, position, "members"))
        members = [group[i] for i in order[: self.size].tolist()]
        return Group(
            latents=tuple(self.songs.latents(row.samples, row.sample_id) for row in members),
            rows=tuple(self.songs.row(row.samples, row.sample_id) for row in members),
            advantages=tuple(row.rating for row in members),
            weight=sum(row.weight for row in members) / self.size,
        )

    def collate(self, examples: Sequence[Group], positions: Sequence[int]) -> Batch:
        """Pad to the longest song of the micro-batch; what is padded counts nowhere."""
        members = [latents for example in examples for latents in example.latents]
        padded = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
        return Batch(
            latents=padded.unflatten(0, (len(examples), self.size)),
            frames=torch.tensor([len(member) for member in members]).view(-1, self.size),
            rows=tuple(example.rows for example in examples),
            positions=tuple(positions),
            weight=torch.tensor([example.weight for example in examples]),
            score=torch.tensor([example.advantages for example in examples]),
        )


def _advantages(group: list[RatingRow]) -> list[RatingRow]:
    """The rows of one prompt, rated by how far each lies above the others."""
    if group[0].source == MINED:
        return group
    values = standard_scores([row.rating for row in group])
    return [replace(row, rating=value) for row, value in zip(group, values, strict=True)]
