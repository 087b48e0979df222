"""The noise of samples: a function of seed, sample, slot and step, never of the batch."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.flow import Latents
from diffdpo.randomness import draw_noise
from diffdpo.sampling.request import Request
from diffdpo.sampling.trajectory import Noise, State


def start_noise(requests: Sequence[Request], seed: int, length: int, channels: int) -> Latents:
    """The noise each sample begins with, drawn or given. Windows of one song share the noise of the frames they
    share."""
    draws = [_draw(r, r.sample_id, seed, length, channels, "noise") for r in requests]
    return torch.cat([_replace(noise, r) for noise, r in zip(draws, requests, strict=True)])


def _replace(noise: Float[Tensor, "1 frame channel"], request: Request) -> Float[Tensor, "1 frame channel"]:
    """The noise with that of the request on its frames, if it has any."""
    if request.noise is None:
        return noise
    row = request.row
    frames = request.noise[row.first_frame : row.first_frame + row.frames].to(noise)
    return torch.cat([frames[None], noise[:, row.frames :]], 1)


def step_noise(requests: Sequence[Request], seed: int, step: int, like: Latents) -> Noise:
    """Noise of a stochastic step, shaped as `like`. The rows of one sample are its slots, in their order: copies of
    one particle get different noise."""

    _, frames, channels = like.shape

    def noise(purpose: str, state: State) -> Latents:
        slots: Counter[int] = Counter()
        rows = []
        for sample in state["row"].tolist():
            key = f"{requests[sample].sample_id}#{slots[sample]}"
            slots[sample] += 1
            rows.append(_draw(requests[sample], key, seed, frames, channels, f"noise-{purpose}-{step}"))
        return torch.cat(rows).to(like)

    return noise


def _draw(
    request: Request, key: str, seed: int, length: int, channels: int, purpose: str
) -> Float[Tensor, "1 frame channel"]:
    """The noise of the request's song, from the request's first frame on."""
    first = request.row.first_frame
    return draw_noise(seed, [key], first + length, channels, purpose)[:, first:]
