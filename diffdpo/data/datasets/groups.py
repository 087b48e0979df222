"""Groups: several songs of one prompt with their advantages, for online reinforcement (NFT, AWM, DGPO) and RWR."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.datasets.generated import GeneratedSongs, Source
from diffdpo.data.ratings import MINED_SOURCE, RATINGS, RatingRow, per_song
from diffdpo.errors import DataError
from diffdpo.mining.scale import exact_z_scores
from diffdpo.randomness import generator
from diffdpo.types import Batch, Row


@dataclass(frozen=True, kw_only=True)
class Group:
    """One example: songs of one prompt, with their advantages."""

    latents: tuple[Float[Tensor, "_ channel"], ...]
    rows: tuple[Row, ...]
    advantages: tuple[float, ...]
    weight: float


class Groups:
    """The prompts of a ratings table that have `size` songs or more; each prompt is one example.

    An example has `size` songs of its prompt, drawn without replacement by its position in the stream. Advantages
    from scores are used as they are; people's ratings become standard deviations within the prompt. Prompts with
    too few songs, or with equal ratings only, are reported and left out.
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
        small_groups, ties = [], []
        songs = sorted(per_song(rows), key=lambda row: (row.samples, row.prompt_id, row.sample_id))
        for (_, prompt), prompt_rows in groupby(songs, key=lambda row: (row.samples, row.prompt_id)):
            group = _advantages(list(prompt_rows))
            if len(group) < size:
                small_groups.append(prompt)
            elif len({round(row.rating, 9) for row in group}) == 1:
                ties.append(prompt)
            else:
                self.groups.append(group)
        for prompts, reason in (
            (small_groups, f"fewer than {size} rated songs"),
            (ties, "songs that are all rated alike"),
        ):
            if prompts:
                source.report(
                    f"{len(prompts)} prompt(s) have {reason} and are left out, first {prompts[0]!r}"
                )
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
        """A batch of groups, padded to the longest song of the micro-batch; padding has no effect on the loss."""
        members = [latents for example in examples for latents in example.latents]
        latents = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
        return Batch(
            latents=latents.unflatten(0, (len(examples), self.size)),
            frames=torch.tensor([len(member) for member in members]).view(-1, self.size),
            rows=tuple(example.rows for example in examples),
            positions=tuple(positions),
            weight=torch.tensor([example.weight for example in examples]),
            score=torch.tensor([example.advantages for example in examples]),
        )


def _advantages(group: list[RatingRow]) -> list[RatingRow]:
    """The rows of one prompt, with advantages over the prompt's mean as ratings."""
    if group[0].source == MINED_SOURCE:
        return group
    values = exact_z_scores([row.rating for row in group])
    return [replace(row, rating=value) for row, value in zip(group, values, strict=True)]
