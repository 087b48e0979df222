"""A batch for tests of training: four examples of two members, of mixed lengths."""

from dataclasses import replace

import torch

from diffdpo.types import Batch, Row
from support.rows import embedding


def identity(network):
    """The network as it is, in the place of accelerate's unwrapping: one process has nothing to unwrap."""
    return network


def batch(members=2, lengths=((30, 24), (18, 18), (30, 30), (12, 20))):
    """The members of an example have one style, and each its own length."""
    generator = torch.Generator().manual_seed(0)
    lengths = [example[:members] for example in lengths]
    longest = max(max(example) for example in lengths)
    latents = torch.randn(len(lengths), members, longest, 8, generator=generator)
    styles = torch.nn.functional.normalize(torch.randn(len(lengths), 16, generator=generator), dim=1)
    return Batch(
        latents=latents,
        frames=torch.tensor(lengths),
        rows=tuple(
            tuple(Row(embedding=embedding(style), frames=frames) for frames in example)
            for style, example in zip(styles, lengths, strict=True)
        ),
        positions=tuple(range(40, 40 + len(lengths))),
        weight=torch.ones(len(lengths)),
    )


def select_examples(full_batch, examples, members=None):
    """A batch of the chosen examples and members alone, padded to the longest of them."""
    members = list(range(full_batch.latents.shape[1])) if members is None else members
    longest = int(full_batch.frames[examples][:, members].max())
    return replace(
        full_batch,
        latents=full_batch.latents[examples][:, members, :longest],
        frames=full_batch.frames[examples][:, members],
        rows=tuple(tuple(full_batch.rows[i][m] for m in members) for i in examples),
        positions=tuple(full_batch.positions[i] for i in examples),
        weight=full_batch.weight[examples],
        score=None if full_batch.score is None else full_batch.score[examples][:, members],
    )
