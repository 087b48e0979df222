"""Groups: several songs of one prompt with their advantages, for online reinforcement (NFT, AWM, DGPO) and RWR."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.latents import read_latents
from diffdpo.data.ratings import MINED, RATINGS, RatingRow, per_song
from diffdpo.data.samples import open_named
from diffdpo.errors import DataError
from diffdpo.mining.scale import standard_scores
from diffdpo.randomness import generator
from diffdpo.types import Batch, Prompt


@dataclass(frozen=True, kw_only=True)
class Group:
    """One example."""

    latents: tuple[Float[Tensor, "_ channel"], ...]
    prompt: Prompt
    advantages: tuple[float, ...]
    weight: float


class Groups:
    """The prompts of a ratings table that have `size` songs or more, each one example.

    An example shows `size` of them, drawn without replacement by its position in the stream. Advantages that
    follow from scores are taken as they are; people's ratings become standard deviations within the prompt.
    `tell` hears which prompts are left out: too few songs, or all of them equally good, which teaches nothing.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[RatingRow],
        embed: Callable[[Prompt], Prompt],
        *,
        size: int,
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        self.size, self.seed = size, seed
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
                tell(f"{len(left)} prompt(s) have {reason} and are left out, first {left[0]!r}")
        if not self.groups:
            raise DataError(
                f"{folder / RATINGS.folder}: no prompt has {size} songs of different rating; lower "
                "data.group_size, or sample more songs a prompt"
            )
        kept = [row for group in self.groups for row in group]
        self.samples, self.prompts = open_named(folder / RATINGS.folder, kept, embed)

    def __len__(self) -> int:
        return len(self.groups)

    def example(self, index: int, position: int) -> Group:
        group = self.groups[index]
        order = torch.randperm(len(group), generator=generator(self.seed, position, "members"))
        members = [group[i] for i in order[: self.size].tolist()]
        samples = self.samples[group[0].samples]
        return Group(
            latents=tuple(read_latents(samples.latents(row.sample_id)) for row in members),
            prompt=self.prompts[group[0].samples, group[0].prompt_id],
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
            prompts=tuple(example.prompt for example in examples),
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
