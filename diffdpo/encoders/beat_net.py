"""Beats and downbeats of a recording by the networks of BeatNet (Heydari, Cwitkowitz & Duan 2021), built here.

A logarithmic spectrum and its rise, 50 frames a second, go through one convolution and a recurrent network, which
only hears the past. The weights are those of the PyPI package BeatNet 1.1.3 (CC BY 4.0, Mojtaba Heydari), converted
by `tools/judges/convert_beats.py`. The front end gives the numbers of madmom's, which that package uses.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.weight_files import check_state, read_tensors

BEATS_SAMPLE_RATE = 22_050
BEATS_HOP = 441
BEATS_FRAME = 1411
BEATS_FRAMES_PER_SECOND = BEATS_SAMPLE_RATE // BEATS_HOP
BANDS_PER_OCTAVE = 24
LOWEST_HZ, HIGHEST_HZ = 30.0, 17_000.0
BAND_COUNT = 136
UNITS = 150
LARGEST_LEVEL = 32_767
LEVELS, STEP = ".levels", ".step"
"""What the names of weights end in that are stored as integers, and those of the sizes of their steps."""
BEATS_WEIGHTS = Path(str(resources.files("diffdpo").joinpath("assets/judges/beats.safetensors")))


class BeatNetwork(nn.Module):
    """Frames of features to the probabilities of a beat that is no downbeat, and of a downbeat."""

    def __init__(self) -> None:
        super().__init__()
        features = 2 * BAND_COUNT
        self.conv = nn.Conv1d(1, 2, 10)
        self.project = nn.Linear(2 * ((features - 9) // 2), UNITS)
        self.recurrent = nn.LSTM(UNITS, UNITS, 2, batch_first=True)
        self.output = nn.Linear(UNITS, 3)

    def forward(self, features: Float[Tensor, "frame feature"]) -> Float[Tensor, "frame 2"]:
        bands = F.max_pool1d(F.relu(self.conv(features[:, None])), 2).flatten(1)
        hidden, _ = self.recurrent(self.project(bands)[None])
        return self.output(hidden[0]).softmax(-1)[:, :2]


class BeatEnsemble(nn.Module):
    """Networks of one design, each trained on other data; their mean."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList([BeatNetwork() for _ in range(count)])

    @torch.no_grad()
    def track(self, samples: Float[Tensor, " sample"]) -> Float[Tensor, "frame 2"]:
        """The probabilities of beats and downbeats of a recording at BEATS_SAMPLE_RATE."""
        features = beat_features(samples)
        return torch.stack([network(features) for network in self.networks]).mean(0)


def beat_features(samples: Float[Tensor, " sample"]) -> Float[Tensor, "frame feature"]:
    """The level of every band, and its rise since the frame before. Frames are centred on every hop."""
    count = -(-len(samples) // BEATS_HOP)
    padded_samples = F.pad(samples, (BEATS_FRAME // 2, BEATS_FRAME + BEATS_HOP))
    frames = padded_samples.unfold(0, BEATS_FRAME, BEATS_HOP)[:count]
    window = torch.hann_window(BEATS_FRAME, periodic=False, dtype=torch.float64).to(samples.dtype)
    magnitudes = torch.fft.rfft(frames * window).abs()[:, : BEATS_FRAME // 2]
    levels = torch.log10(magnitudes @ filter_bank().to(samples.dtype) + 1)
    rise = F.pad((levels[1:] - levels[:-1]).clamp_min(0), (0, 0, 1, 0))
    return torch.cat([levels, rise], dim=1)


@cache
def filter_bank() -> Float[Tensor, "bin band"]:
    """Overlapping triangles of sum 1, each from one quarter-tone to the next but one, rounded to bins.

    Where quarter-tones fall on one bin they are one; a bin's frequency is that of a transform of an even length.
    """
    bins = BEATS_FRAME // 2
    step = BEATS_SAMPLE_RATE / (2 * bins)
    first, last = (int(BANDS_PER_OCTAVE * np.log2(hertz / 440)) for hertz in (LOWEST_HZ, HIGHEST_HZ))
    hertz = 440 * 2 ** (np.arange(first, last + 1) / BANDS_PER_OCTAVE)
    corners = np.unique(np.clip(np.rint(hertz / step).astype(int), 0, bins - 1))
    places = np.arange(bins)[:, None]
    low, top, high = corners[:-2], corners[1:-1], corners[2:]
    ascents = (places - low) / (top - low)
    descents = (high - places) / (high - top)
    triangles = np.clip(np.minimum(ascents, descents), 0, None)
    return torch.from_numpy(triangles / triangles.sum(0))


def load_beat_networks(path: Path) -> BeatEnsemble:
    """The networks with the weights of a file, frozen. CheckpointError for other weights."""
    return build_beat_networks(join_levels(read_tensors(path)), str(path))


def split_levels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as integers of 16 bits and the size of a step in each row, half of their size; biases as they are.

    A step is 1 / 32,767 of the largest weight of the row, finer than float16 for all that matters.
    """
    tensors = {}
    for name, tensor in state.items():
        if tensor.dim() < 2:
            tensors[name] = tensor.float()
            continue
        step = tensor.flatten(1).abs().amax(1).clamp_min(1e-12) / LARGEST_LEVEL
        rows = step.reshape(-1, *[1] * (tensor.dim() - 1))
        tensors[name + LEVELS], tensors[name + STEP] = (tensor / rows).round().to(torch.int16), step
    return tensors


def join_levels(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `split_levels`."""
    state = {}
    for name, tensor in tensors.items():
        if name.endswith(LEVELS):
            step = tensors[name.removesuffix(LEVELS) + STEP]
            state[name.removesuffix(LEVELS)] = tensor * step.reshape(-1, *[1] * (tensor.dim() - 1))
        elif not name.endswith(STEP):
            state[name] = tensor
    return state


def build_beat_networks(state: Mapping[str, Tensor], location: str) -> BeatEnsemble:
    """As many networks as there are weights of, every name and shape checked."""
    count = len({name.split(".")[1] for name in state if name.startswith("networks.")})
    ensemble = BeatEnsemble(count)
    check_state(ensemble, state, location)
    ensemble.load_state_dict(state)
    return ensemble.eval().requires_grad_(False)


@cache
def pretrained_beat_networks() -> BeatEnsemble:
    """The networks shipped with the package, loaded once a process."""
    return load_beat_networks(BEATS_WEIGHTS)
