"""Randomness that belongs to the example, never to the batch.

Every draw comes from a generator seeded by (run seed, key, purpose). The key names the example: its position
in the training stream, or the id of a sample. Micro-batch, accumulation and number of processes then change
nothing, and a resumed run draws what an uninterrupted one would have drawn.
"""

import hashlib
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def seed_for(run_seed: int, key: int | str, purpose: str) -> int:
    """A 63-bit seed, the same on every machine and Python version."""
    digest = hashlib.blake2b(f"{run_seed}|{key}|{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(run_seed: int, key: int | str, purpose: str) -> torch.Generator:
    """A CPU generator of its own for one example and one purpose."""
    return torch.Generator().manual_seed(seed_for(run_seed, key, purpose))


def draw_noise(
    run_seed: int, keys: Iterable[int | str], frames: int, channels: int, purpose: str = "noise"
) -> Float[Tensor, "example {frames} {channels}"]:
    """Standard normal noise, one generator an example.

    Frame-major, so a longer draw begins with the shorter one: padding or cropping a song keeps the noise of
    the frames both have. torch fills normals in blocks of 16 and redraws the last block when the count is not
    a multiple, hence the rounding.
    """
    count = frames * channels
    padded_count = -(-count // 16) * 16
    draws = [torch.randn(padded_count, generator=generator(run_seed, key, purpose))[:count] for key in keys]
    return torch.stack(draws).view(-1, frames, channels)


def draw_uniform(run_seed: int, keys: Iterable[int | str], purpose: str) -> Float[Tensor, " example"]:
    """One number in [0, 1) an example."""
    return torch.stack([torch.rand((), generator=generator(run_seed, key, purpose)) for key in keys])
