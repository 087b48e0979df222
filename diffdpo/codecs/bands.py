"""Bands of an STFT: their levels, and sound brought to given levels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffdpo.codecs.phase_init import Stft

MAX_GAIN = 4.0
"""The largest amplification of a band by `shape` (12 dB), so that silence does not become noise."""


@dataclass(frozen=True)
class Bands:
    """Groups of STFT bins: single bins at the bottom, for pitch, then bands of growing width."""

    edges: tuple[int, ...]

    @staticmethod
    def of(stft_size: int, sample_rate: int, linear: int, n_groups: int, top_hz: float) -> "Bands":
        top = top_hz * stft_size / sample_rate
        group_edges = torch.logspace(0, 1, n_groups + 1, base=top / linear, dtype=torch.float64) * linear
        return Bands((*range(linear), *sorted({round(float(edge)) for edge in group_edges})))

    @property
    def widths(self) -> tuple[int, ...]:
        """Bins in each band."""
        return tuple(stop - start for start, stop in zip(self.edges[:-1], self.edges[1:], strict=True))

    def pool(self, power: Float[Tensor, "*batch bin"]) -> Float[Tensor, "*batch band"]:
        """The root mean square of each band, from the power of each bin."""
        single = self.first_wide
        low, high = self.edges[single], self.edges[-1]
        averages = torch.zeros(high - low, len(self.widths) - single, device=power.device, dtype=power.dtype)
        for band, (start, width) in enumerate(zip(self.edges[single:-1], self.widths[single:], strict=True)):
            averages[start - low : start - low + width, band] = 1 / width
        return torch.cat([power[..., self.edges[0] : low], power[..., low:high] @ averages], -1).sqrt()

    @property
    def first_wide(self) -> int:
        """The first band of more than one bin."""
        return next((i for i, width in enumerate(self.widths) if width > 1), len(self.widths))

    def spread(self, rms: Float[Tensor, "*batch band"], bins: int) -> Float[Tensor, "*batch {bins}"]:
        """A flat spectrum within each band, nothing above the top."""
        full = rms.repeat_interleave(torch.tensor(self.widths, device=rms.device), dim=-1)
        return F.pad(full, (self.edges[0], bins - self.edges[-1]))


def shape(
    audio: Float[Tensor, "batch sample"], levels: Float[Tensor, "batch frame band"], stft: Stft, bands: Bands
) -> Float[Tensor, "batch sample"]:
    """Sound with the given band levels, which are root mean squares of STFT magnitudes; phases stay.

    With windows of a few hundredths of a second, shaping restores the attacks that the long windows of a tonal
    analysis smear, as temporal noise shaping does in audio coders (Herre & Johnston 1996). `audio` has whole
    frames, of stft.hop samples each.
    """
    pad = (stft.size - stft.hop) // 2
    spectrum = stft.forward(F.pad(audio, (pad, pad)))
    current_levels = bands.pool(spectrum.abs() ** 2)
    gain = bands.spread((levels / current_levels.clamp(min=1e-5)).clamp(max=MAX_GAIN), stft.size // 2 + 1)
    return stft.inverse(spectrum * gain)[:, pad:-pad]
