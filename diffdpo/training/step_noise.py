"""The randomness of a training step: a function of the seed and of each example's place in the stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo.randomness import draw_noise, draw_uniform, generator
from diffdpo.training.config import InpaintConfig, TrainConfig
from diffdpo.training.references import grid_key
from diffdpo.types import Batch

CONTEXT = "context"
"""The name in `train.dropout` of the in-painting context, which is no part of any model's condition."""


@dataclass(frozen=True, kw_only=True)
class StepNoise:
    """The randomness of a batch, drawn for each example and shared by the members of a pair."""

    t: Float[Tensor, " example"]
    noise: Float[Tensor, "example frame channel"]
    drop_masks: Mapping[str, Bool[Tensor, " example"]]
    """For each part of the condition, True for the examples that are trained without it."""
    span: Bool[Tensor, "example frame"]
    """The frames to be generated; all of them unless in-painting is trained."""

    def select(self, index: Int[Tensor, " part"], length: int) -> "StepNoise":
        """The randomness of some of the examples, cut to `length` frames."""
        return StepNoise(
            t=self.t[index],
            noise=self.noise[index, :length],
            drop_masks={part: mask[index] for part, mask in self.drop_masks.items()},
            span=self.span[index, :length],
        )


def noise_keys(batch: Batch, cfg: TrainConfig) -> tuple[int | str, ...]:
    """The key of each example's randomness: its position, or its place in the grid of cached draws."""
    draws = cfg.reference.cached_draws
    if not draws:
        return batch.positions
    return tuple(grid_key(name, visit, draws) for name, visit in zip(batch.ids, batch.visits, strict=True))


def sample_noise(
    batch: Batch,
    cfg: TrainConfig,
    seed: int,
    times: Sequence[float] | None = None,
    *,
    headroom: int = 0,
) -> StepNoise:
    """Timestep, noise, dropped parts and span as functions of (seed, position in the stream).

    `times` are those of a few-step network, see `LatentSpec.times`; `headroom` are the frames that the model
    adds to the length that a prompt asks for.
    """
    _, _, frames, channels = batch.latents.shape
    lengths = [max(1, rows[0].total_frames - headroom) for rows in batch.rows]
    keys = noise_keys(batch, cfg)
    drop_masks = {
        part: draw_uniform(seed, keys, f"drop-{part}") < probability
        for part, probability in sorted(cfg.dropout.items())
    }
    return StepNoise(
        t=torch.stack(
            [
                cfg.timesteps.draw(generator(seed, key, "timestep"), times, length)
                for key, length in zip(keys, lengths, strict=True)
            ]
        ),
        noise=draw_noise(seed, keys, frames, channels),
        drop_masks=drop_masks,
        span=_sample_spans(batch, cfg.inpaint, keys, seed),
    )


def _sample_spans(
    batch: Batch, inpaint: InpaintConfig | None, keys: Sequence[int | str], seed: int
) -> Bool[Tensor, "example frame"]:
    """One contiguous span an example, of a uniformly drawn share of its frames, at a uniform place."""
    length = batch.latents.shape[2]
    if inpaint is None:
        return torch.ones(len(keys), length, dtype=torch.bool)
    share = draw_uniform(seed, keys, "span-length")
    place = draw_uniform(seed, keys, "span-place")
    frames = batch.frames.amax(1)
    fraction = inpaint.min_fraction + (inpaint.max_fraction - inpaint.min_fraction) * share
    width = (fraction * frames).round().clamp(min=1)
    start = (place * (frames - width + 1)).floor()
    index = torch.arange(length)[None]
    return (index >= start[:, None]) & (index < (start + width)[:, None])
