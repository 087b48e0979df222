"""A batch for tests of training: four examples of two members, of mixed lengths."""

from dataclasses import replace

import torch

from diffdpo.types import Batch, Row
from support.rows import embedding


def itself(network):
    """Stands where accelerate would: one process has nothing to unwrap."""
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


def some(whole, examples, members=None):
    """Some examples of a batch and some of their members, padded no further than they need."""
    members = list(range(whole.latents.shape[1])) if members is None else members
    longest = int(whole.frames[examples][:, members].max())
    return replace(
        whole,
        latents=whole.latents[examples][:, members, :longest],
        frames=whole.frames[examples][:, members],
        rows=tuple(tuple(whole.rows[i][m] for m in members) for i in examples),
        positions=tuple(whole.positions[i] for i in examples),
        weight=whole.weight[examples],
        score=None if whole.score is None else whole.score[examples][:, members],
    )
