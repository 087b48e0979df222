"""A batch for tests of training: four examples of two members, of mixed lengths."""

import torch

from diffdpo.types import Batch, Prompt


def itself(network):
    """Stands where accelerate would: one process has nothing to unwrap."""
    return network


def batch(members=2, lengths=((30, 24), (18, 18), (30, 30), (12, 20))):
    generator = torch.Generator().manual_seed(0)
    lengths = [row[:members] for row in lengths]
    longest = max(max(row) for row in lengths)
    return Batch(
        latents=torch.randn(len(lengths), members, longest, 8, generator=generator),
        frames=torch.tensor(lengths),
        prompts=tuple(
            Prompt(
                id=f"p{i}", style=torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
            )
            for i in range(len(lengths))
        ),
        positions=tuple(range(40, 40 + len(lengths))),
        weight=torch.ones(len(lengths)),
    )
