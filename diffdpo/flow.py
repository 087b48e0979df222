"""Rectified flow on latents: t=0 is the song, t=1 is noise, the network predicts noise - song.

Latents are [batch, frame, channel]. A time belongs to a song, or to each frame of a song. References: Liu et
al. 2022 (rectified flow), Lipman et al. 2022 (flow matching), Esser et al. 2024 (logit-normal timesteps).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from diffdpo.checks import check_range

Latents = Float[Tensor, "batch frame channel"]
SongLatents = Float[Tensor, "frame channel"]
"""The latents of one song."""
Times = Float[Tensor, " batch"] | Float[Tensor, "batch frame"]


def broadcast(values: Shaped[Tensor, "batch *frame"]) -> Shaped[Tensor, "batch _ _"]:
    """A number a song, or a number a frame, as [batch, frame or 1, 1], to be multiplied with latents."""
    return values.reshape(*values.shape, *[1] * (3 - values.ndim))


def interpolate(song: Latents, noise: Latents, t: Times) -> Latents:
    """x_t = (1 - t) song + t noise."""
    return (1 - broadcast(t)) * song + broadcast(t) * noise


def velocity(song: Latents, noise: Latents) -> Latents:
    """dx/dt along the straight path, the regression target: noise - song."""
    return noise - song


def song_from_velocity(x: Latents, v: Latents, t: Times) -> Latents:
    """The song that a velocity at (x, t) points back to: x - t v."""
    return x - broadcast(t) * v


def noise_from_velocity(x: Latents, v: Latents, t: Times) -> Latents:
    """The noise that a velocity at (x, t) points forward to: x + (1 - t) v."""
    return x + (1 - broadcast(t)) * v


def mask_from_frames(frames: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch {length}"]:
    """True where a frame exists, False in the padding behind the end of a song."""
    return torch.arange(length, device=frames.device) < frames[:, None]


LOG_SNR_START, LOG_SNR_END = -6.2, 2.0


def log_snr_times(
    steps: int, start: float = LOG_SNR_START, end: float = LOG_SNR_END
) -> Float[Tensor, " point"]:
    """Times from noise, 1, to the song, 0, evenly spaced in the logarithm of the signal-to-noise ratio.

    t = sigmoid(-l) for l = log((1 - t) / t) from `start` to `end`, with the two ends put to 1 and 0, as
    published with Stable Audio 3 (arXiv 2605.17991). The values are those of fp32: that network's features of
    the time oscillate so fast that they tell neighbours in fp32 apart.
    """
    ramp = torch.linspace(1, 0, steps + 1, dtype=torch.float32)
    times = torch.sigmoid(ramp * (end - start) - end)
    times[0], times[-1] = 1.0, 0.0
    return times


def frame_errors(prediction: Latents, target: Latents) -> Float[Tensor, "batch frame"]:
    """Squared error averaged over channels, in at least fp32 whatever the forward's precision.

    Reducing in bf16 costs about half a logit at beta 2000; fp64 stays fp64.
    """
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return reduce(
        (prediction.to(dtype) - target.to(dtype)) ** 2, "batch frame channel -> batch frame", "mean"
    )


def masked_mean(
    values: Float[Tensor, "*batch frame"], mask: Bool[Tensor, "*batch frame"] | None
) -> Float[Tensor, "*batch"]:
    """Mean over the frames in the mask, or over all without one. Padding has no effect, not even a NaN in it."""
    if mask is None:
        return values.mean(-1)
    return values.where(mask, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def weighted_frame_mean(
    values: Float[Tensor, "*batch frame"], weights: Float[Tensor, "*batch frame"]
) -> Float[Tensor, "*batch"]:
    """Mean over frames under weights that sum to one. A value under weight zero has no effect, not even a NaN."""
    return (values.where(weights > 0, 0) * weights.to(values.dtype)).sum(-1)


def span_weights(
    mask: Bool[Tensor, "*batch frame"],
    span: Bool[Tensor, "*#batch frame"] | None,
    share: float,
    dtype: torch.dtype,
) -> Float[Tensor, "*batch frame"]:
    """The weight of each frame: `share` is spread evenly over the span, the rest over all frames that exist.

    The weights of a song sum to one. A song without a span, or without a frame in it, counts as a whole.
    """
    uniform = mask.to(dtype) / mask.sum(-1, keepdim=True).clamp(min=1)
    if span is None:
        return uniform
    inside = mask & span
    count = inside.sum(-1, keepdim=True)
    local = torch.where(count > 0, inside.to(dtype) / count.clamp(min=1), uniform)
    return (1 - share) * uniform + share * local


def masked_square(
    difference: Float[Tensor, "*batch frame channel"],
    mask: Bool[Tensor, "*batch frame"] | None,
    weights: Float[Tensor, "*batch frame"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean square over all channels and the frames that exist, or over frames under weights, in at least fp32."""
    squares = (difference.to(torch.promote_types(difference.dtype, torch.float32)) ** 2).mean(-1)
    return masked_mean(squares, mask) if weights is None else weighted_frame_mean(squares, weights)


def masked_error(
    prediction: Latents, target: Latents, mask: Bool[Tensor, "batch frame"]
) -> Float[Tensor, " batch"]:
    """Mean squared velocity error of each song, over its valid frames and all channels."""
    return masked_mean(frame_errors(prediction, target), mask)


@dataclass(frozen=True)
class LengthShift:
    """More noise for longer songs: logits of t are moved by a number that is linear in the length, between bounds.

    The defaults are those of Stable Audio 3.
    """

    low: float = 0.5
    """The shift, in logits, of a song of `min_frames` or fewer."""
    high: float = 1.15
    """The shift of a song of `max_frames` or more."""
    min_frames: int = 256
    max_frames: int = 4096

    def __post_init__(self) -> None:
        check_range(self, "low", "high", low=0, prefix="timesteps.length_shift.")
        check_range(self, "min_frames", low=1, prefix="timesteps.length_shift.")
        check_range(self, "max_frames", above=self.min_frames, prefix="timesteps.length_shift.")

    def __call__(self, frames: int) -> float:
        """The shift of a song of so many frames."""
        place = (frames - self.min_frames) / (self.max_frames - self.min_frames)
        return self.low + (self.high - self.low) * min(max(place, 0.0), 1.0)


@dataclass(frozen=True)
class Timesteps:
    """The density from which training times are drawn."""

    density: Literal["logit_normal", "logit_uniform", "uniform"] = "logit_normal"
    """Of the logit of t, which is minus the logarithm of the signal-to-noise ratio, or of t itself."""
    mean: float = 0.0
    """Of the logit-normal, in logits of t: positive means more noise."""
    std: float = 1.0
    low: float = -5.0
    """Ends of the logit-uniform, in logits of t."""
    high: float = 6.0
    length_shift: LengthShift | None = None
    """More noise for longer songs, by the length that the prompt asks for."""

    def __post_init__(self) -> None:
        check_range(self, "std", above=0, prefix="timesteps.")
        check_range(self, "mean", "low", prefix="timesteps.")
        check_range(self, "high", above=self.low, prefix="timesteps.")

    def draw(
        self, generator: torch.Generator, times: Sequence[float] | None = None, frames: int = 1
    ) -> Float[Tensor, ""]:
        """One time in (0, 1); one of `times` except the song's, 0, each equally likely, for a few-step network.

        `frames` is the length that the prompt asks for.
        """
        if times is not None:
            noisy = torch.tensor([t for t in times if t > 0])
            return noisy[torch.randint(len(noisy), (), generator=generator)]
        t = self._draw(generator)
        return t if self.length_shift is None else torch.sigmoid(torch.logit(t) + self.length_shift(frames))

    def _draw(self, generator: torch.Generator) -> Float[Tensor, ""]:
        if self.density == "uniform":
            return torch.rand((), generator=generator)
        if self.density == "logit_uniform":
            return torch.sigmoid(self.low + (self.high - self.low) * torch.rand((), generator=generator))
        return torch.sigmoid(self.mean + self.std * torch.randn((), generator=generator))
