"""Notes of a recording by the network of basic-pitch (Bittner et al. 2022), built here.

A constant-Q transform of windows of two seconds, its harmonics stacked as channels, and a few convolutions give,
for every frame of 11.6 ms, how likely each key of the piano sounds, and how likely it is struck. The weights and
the filters are those of the PyPI package basic-pitch 0.4.0 (Apache-2.0, Spotify AB), converted by
`tools/judges/convert_notes.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.weight_files import check_state, read_tensors

NOTES_SAMPLE_RATE = 22_050
NOTES_HOP = 256
NOTES_WINDOW = 2 * NOTES_SAMPLE_RATE - NOTES_HOP
"""Samples of a window, which is normalised by itself."""
WINDOW_FRAMES = 172
WINDOW_CHUNK = 4
"""Windows in one forward pass, which bounds the memory that a long song takes."""
OVERLAP_FRAMES = 30
"""Frames that neighbouring windows share; each gives half of them away."""
NOTES_FRAMES_PER_SECOND = 86
"""Frames that are kept of each second: the published number, a little less than rate / hop."""
CQT_OCTAVES = 9
CQT_OCTAVE_BINS = 36
CQT_BINS = 309
"""Bins from 27.5 Hz up, three a semitone."""
PITCH_BINS = 264
NOTES = 88
HARMONIC_SHIFTS = (-36, 0, 36, 57, 72, 84, 93, 101)
"""Bins from a tone to half, one, two, … seven times its frequency."""
SMALLEST_POWER = 1e-10
LOWEST_NOTE = 21
"""The MIDI number of the lowest key of the piano."""
NOTES_WEIGHTS = Path(str(resources.files("diffdpo").joinpath("assets/judges/notes.safetensors")))


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What sounds in every frame, as probabilities."""

    note: Float[Tensor, "frame 88"]
    """A key of the piano sounds, lowest first."""
    onset: Float[Tensor, "frame 88"]
    """It is struck."""
    contour: Float[Tensor, "frame 264"]
    """A third of a semitone sounds."""


class ConstantQ(nn.Module):
    """Magnitudes of a constant-Q transform, octave by octave: one octave of filters on ever lower sample rates."""

    def __init__(self) -> None:
        super().__init__()
        width = 256
        self.register_buffer("filters", torch.zeros(2 * CQT_OCTAVE_BINS, 1, width))
        """Real parts, then imaginary parts."""
        self.register_buffer("low_pass", torch.zeros(1, 1, width))
        self.register_buffer("scale", torch.zeros(CQT_BINS))
        """Square root of the length of each bin's filter."""

    def forward(self, samples: Float[Tensor, "window sample"]) -> Float[Tensor, "window frame bin"]:
        x = samples[:, None]
        octaves = []
        for octave in range(CQT_OCTAVES):
            if octave:
                x = F.conv1d(F.pad(x, (127, 127)), self.get_buffer("low_pass"), stride=2)
            stride = NOTES_HOP >> octave
            octaves.append(
                F.conv1d(F.pad(x, (128, 128), mode="reflect"), self.get_buffer("filters"), stride=stride)
            )
        parts = [octave.unflatten(1, (2, CQT_OCTAVE_BINS)) for octave in reversed(octaves)]
        real, imaginary = torch.cat(parts, dim=2)[:, :, -CQT_BINS:].unbind(1)
        scale = self.get_buffer("scale")[:, None]
        return torch.hypot(real * scale, imaginary * scale).transpose(1, 2)


class NoteNetwork(nn.Module):
    """Windows of samples to notes, onsets and contours."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = ConstantQ()
        self.input_scale = nn.Parameter(torch.ones(1))
        self.input_shift = nn.Parameter(torch.zeros(1))
        channels = len(HARMONIC_SHIFTS)
        self.contour = nn.Sequential(
            nn.Conv2d(channels, 8, (3, 39), padding=(1, 19)), nn.ReLU(), nn.Conv2d(8, 1, 5, padding=2)
        )
        self.note = nn.Sequential(
            nn.Conv2d(1, 32, 7, stride=(1, 3), padding=(3, 2)),
            nn.ReLU(),
            nn.Conv2d(32, 1, (7, 3), padding=(3, 1)),
        )
        self.attack = nn.Sequential(nn.Conv2d(channels, 32, 5, stride=(1, 3), padding=(2, 1)), nn.ReLU())
        self.onset = nn.Conv2d(33, 1, 3, padding=1)

    def forward(
        self, samples: Float[Tensor, "window sample"]
    ) -> tuple[
        Float[Tensor, "window frame 88"], Float[Tensor, "window frame 88"], Float[Tensor, "window frame 264"]
    ]:
        """Notes, onsets and contours of windows of NOTES_WINDOW samples."""
        levels = normalise_levels(self.transform(samples)) * self.input_scale + self.input_shift
        x = stack_harmonics(levels)
        contour = self.contour(x).sigmoid()
        note = self.note(contour).sigmoid()
        onset = self.onset(torch.cat([note, self.attack(x)], dim=1)).sigmoid()
        return note[:, 0], onset[:, 0], contour[:, 0]

    @torch.no_grad()
    def transcribe(self, samples: Float[Tensor, " sample"]) -> Notes:
        """The notes of a recording at NOTES_SAMPLE_RATE."""
        windows = overlapping_windows(samples)
        edge = OVERLAP_FRAMES // 2
        count = len(samples) * NOTES_FRAMES_PER_SECOND // NOTES_SAMPLE_RATE
        parts = [self(chunk) for chunk in windows.split(WINDOW_CHUNK)]
        note, onset, contour = (
            torch.cat(kind)[:, edge:-edge].flatten(0, 1)[:count] for kind in zip(*parts, strict=True)
        )
        return Notes(note=note, onset=onset, contour=contour)


def normalise_levels(magnitudes: Float[Tensor, "window frame bin"]) -> Float[Tensor, "window frame bin"]:
    """Decibels between 0, the lowest of the window, and 1, the highest; 0 throughout where all are the same."""
    levels = 10 * torch.log10(magnitudes**2 + SMALLEST_POWER)
    levels = levels - levels.amin((1, 2), keepdim=True)
    highest = levels.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, levels / highest, 0.0)


def stack_harmonics(
    levels: Float[Tensor, "window frame bin"],
) -> Float[Tensor, "window harmonic frame pitch"]:
    """For every pitch the levels at its harmonics, as channels; 0 where there is no bin."""
    low, high = -min(HARMONIC_SHIFTS), max(HARMONIC_SHIFTS)
    padded_levels = F.pad(levels, (low, max(0, high + PITCH_BINS - levels.shape[2])))
    channels = [padded_levels[..., low + shift :][..., :PITCH_BINS] for shift in HARMONIC_SHIFTS]
    return torch.stack(channels, dim=-1).permute(0, 3, 1, 2)  # channels last: a third of the cost


def overlapping_windows(samples: Float[Tensor, " sample"]) -> Float[Tensor, "window _"]:
    """Windows that overlap by OVERLAP_FRAMES, with silence before the first and behind the last."""
    overlap = OVERLAP_FRAMES * NOTES_HOP
    step = NOTES_WINDOW - overlap
    length = overlap // 2 + len(samples)
    count = -(-length // step)
    padding = (overlap // 2, (count - 1) * step + NOTES_WINDOW - length)
    return F.pad(samples, padding).unfold(0, NOTES_WINDOW, step)


def load_notes(path: Path) -> NoteNetwork:
    """The network with the weights of a file, frozen. CheckpointError for other weights."""
    return build_notes(read_tensors(path), str(path))


def build_notes(state: Mapping[str, Tensor], location: str) -> NoteNetwork:
    """A network with these weights, every name and shape checked."""
    network = NoteNetwork()
    check_state(network, state, location)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network.eval().requires_grad_(False)


@cache
def pretrained_notes() -> NoteNetwork:
    """The network shipped with the package, loaded once a process."""
    return load_notes(NOTES_WEIGHTS)
