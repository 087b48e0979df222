"""Phases for a magnitude spectrogram, strictly local in time.

A sustained partial needs phases that advance at its own frequency, over seconds. Integrating phases from frame to
frame would make every sample depend on all earlier samples, and a chunk decoded alone would differ from the same
chunk in its song. Here the phase of a bin is a function of the frame's absolute place in time and of a frequency
rounded to a quarter of a bin: constant while a note lasts, so coherent; and periodic over few frames, so local. A
few iterations of fast Griffin-Lim (Perraudin et al. 2013) reduce the inconsistency due to rounding.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

GRID = 4
"""Frequencies are rounded to 1/GRID of a bin."""
NOISE_FRAMES = 64
"""Period, in frames, of the table of random phases."""


@dataclass(frozen=True)
class Stft:
    """A Hann-windowed STFT without padding: frame n covers samples n*hop … n*hop + size."""

    size: int = 4096
    hop: int = 1024

    def __post_init__(self) -> None:
        if self.size % self.hop:
            raise ValueError(f"the STFT size {self.size} must be a multiple of its hop {self.hop}")

    def window(self, like: Tensor) -> Float[Tensor, " {self.size}"]:
        return torch.hann_window(self.size, dtype=like.dtype, device=like.device)

    def forward(self, audio: Float[Tensor, "batch sample"]) -> Complex[Tensor, "batch frame bin"]:
        return torch.fft.rfft(audio.unfold(-1, self.size, self.hop) * self.window(audio))

    def inverse(self, spectrum: Complex[Tensor, "batch frame bin"]) -> Float[Tensor, "batch sample"]:
        """The least-squares inverse of `forward`, by windowed overlap-add (Griffin & Lim 1984, eq. 6)."""
        frames = torch.fft.irfft(spectrum, n=self.size)
        window = self.window(frames)
        audio = self._overlap_add(frames * window)
        weight = self._overlap_add((window**2).expand(1, frames.shape[1], -1))
        return audio / weight.clamp(min=1e-3)

    def _overlap_add(self, frames: Float[Tensor, "batch frame size"]) -> Float[Tensor, "batch sample"]:
        count, parts = frames.shape[1], self.size // self.hop
        total = frames.new_zeros(len(frames), count + parts - 1, self.hop)
        for part, piece in enumerate(frames.split(self.hop, dim=-1)):
            total[:, part : part + count] += piece
        return total.flatten(1)


@cache
def _noise(bins: int) -> Complex[Tensor, "frame bin"]:
    uniforms = torch.rand(NOISE_FRAMES, bins, generator=torch.Generator().manual_seed(0))
    return torch.polar(torch.ones_like(uniforms), 2 * math.pi * uniforms)


def initial_phases(
    magnitude: Float[Tensor, "batch frame bin"],
    stft: Stft,
    *,
    first_frame: int,
    tonal_bins: int,
    steady_frames: int,
) -> Complex[Tensor, "batch frame bin"]:
    """Initial phases as unit phasors: below `tonal_bins` of the partial at the nearest spectral peak, above noise.

    `first_frame` is the place of the first frame in the song. Magnitudes are averaged over `steady_frames` before
    peaks are located, so that partials flicker less. Within the main lobe of a Hann window all bins share the phase
    of the partial, but for a factor (-1)^bin, since time is counted from the start of the frame.
    """
    frames, bins = magnitude.shape[1:]
    time = torch.arange(first_frame, first_frame + frames, device=magnitude.device)
    phases = _noise(bins).to(magnitude.device)[time % NOISE_FRAMES].expand(len(magnitude), -1, -1).clone()
    frequency = peak_frequency(average_frames(magnitude[..., : tonal_bins + 1], steady_frames))
    frequency = (frequency * GRID).round() / GRID
    turns = frequency.double() * (time * stft.hop)[:, None] / stft.size
    turns = (turns + torch.arange(tonal_bins + 1, device=magnitude.device) / 2) % 1
    tonal = torch.polar(torch.ones_like(turns), 2 * math.pi * turns).to(phases.dtype)
    phases[..., :tonal_bins] = tonal[..., :tonal_bins]
    return phases


def average_frames(
    magnitude: Float[Tensor, "batch frame bin"], frames: int
) -> Float[Tensor, "batch frame bin"]:
    """A moving average over an odd number of frames; at the ends the first and last frame are repeated."""
    signal = F.pad(magnitude.transpose(1, 2), (frames // 2, frames // 2), mode="replicate")
    return F.avg_pool1d(signal, frames, 1).transpose(1, 2)


def peak_frequency(magnitude: Float[Tensor, "batch frame bin"]) -> Float[Tensor, "batch frame bin"]:
    """For each bin the frequency, in bins, of the nearest spectral peak, by parabolic interpolation."""
    bins = magnitude.shape[-1]
    index = torch.arange(bins, device=magnitude.device).expand_as(magnitude)
    log = magnitude.clamp(min=1e-6).log()
    left, middle, right = log[..., :-2], log[..., 1:-1], log[..., 2:]
    offset = ((left - right) / (2 * (left - 2 * middle + right)).clamp(max=-1e-6)).clamp(-0.5, 0.5)
    frequency = index.to(magnitude.dtype)
    frequency = torch.cat([frequency[..., :1], frequency[..., 1:-1] + offset, frequency[..., -1:]], -1)
    peak = F.pad((middle > left) & (middle >= right), (1, 1))
    peak_below = torch.where(peak, index, -bins).cummax(-1).values
    peak_above = torch.where(peak, index, 2 * bins).flip(-1).cummin(-1).values.flip(-1)
    nearest = torch.where(index - peak_below <= peak_above - index, peak_below, peak_above)
    nearest = torch.where((nearest < 0) | (nearest >= bins), index, nearest)
    return torch.gather(frequency, -1, nearest)


def griffin_lim(
    magnitude: Float[Tensor, "batch frame bin"],
    phases: Complex[Tensor, "batch frame bin"],
    stft: Stft,
    *,
    iterations: int,
    momentum: float = 0.99,
    constant_phases: bool = False,
) -> Float[Tensor, "batch sample"]:
    """Sound with the given magnitudes, by fast Griffin-Lim from initial phases.

    Each iteration extends the dependence of a sample by size/hop - 1 frames. With `constant_phases` gradients pass
    through the magnitudes of the last step alone, which takes a third of the memory.
    """
    previous = torch.zeros_like(phases)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not constant_phases):
        for _ in range(iterations):
            consistent = stft.forward(stft.inverse(magnitude * phases))
            extrapolation = torch.sub(consistent, previous, alpha=momentum / (1 + momentum))
            previous = consistent
            phases = extrapolation.sgn()  # on a CPU a third of the time of a division by its magnitude
    return stft.inverse(magnitude * phases)
