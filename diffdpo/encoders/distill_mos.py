"""DistillMOS (Stahl & Gamper 2025): the quality of speech as listeners rate it, without a reference.

A compressed spectrogram goes through convolutions and a transformer, whose frames are pooled by attention. Built
here, with the published names of its parameters; the scorer is `diffdpo.scorers.artefacts`.
"""

import math
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.weight_files import check_state, read_state_dict

MOS_SAMPLE_RATE = 16_000
MOS_SAMPLES = 122_880
"""Samples of the excerpt that the network rates: 7.68 s."""
MOS_FRAME, MOS_HOP = 320, 160
MOS_COMPRESSION = 0.3
MOS_CHANNELS = (64, 64, 128, 256, 256, 256)
MOS_BINS = MOS_FRAME // 2 + 1
MOS_DIM, MOS_HEADS, MOS_LAYERS = 200, 8, 7
MOS_FRAMES = MOS_SAMPLES // MOS_HOP // 2
"""Frames of the transformer: the last convolution takes every second one."""
LOWEST_MOS, HIGHEST_MOS = 1.0, 5.0


class SpectrogramConvolutions(nn.Module):
    """Two channels, real and imaginary part, to features of every second frame."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        bins, inputs = MOS_BINS, 2
        for number, outputs in enumerate(MOS_CHANNELS):
            steps = (2 if number else 1, 2 if number == len(MOS_CHANNELS) - 1 else 1)
            layers += [nn.Conv2d(inputs, outputs, 3, stride=steps, padding=(0, 1)), nn.LeakyReLU(0.1)]
            bins, inputs = (bins - 3) // steps[0] + 1, outputs
        self.cnn = nn.Sequential(*layers)
        self.features = inputs * bins

    def forward(self, spectrum: Float[Tensor, "batch 2 bin step"]) -> Float[Tensor, "batch frame feature"]:
        return self.cnn(spectrum).flatten(1, 2).transpose(1, 2)


class FrameNorm(nn.BatchNorm1d):
    """Batch normalisation of features that are last."""

    def forward(self, h: Float[Tensor, "batch frame feature"]) -> Float[Tensor, "batch frame feature"]:
        return super().forward(h.transpose(1, 2)).transpose(1, 2)


class SinePlaces(nn.Module):
    """Sines and cosines of a frame's number, added to it."""

    pe: Tensor

    def __init__(self) -> None:
        super().__init__()
        turns = torch.arange(MOS_FRAMES)[:, None] * torch.exp(
            torch.arange(0, MOS_DIM, 2) * (-math.log(2 * MOS_FRAMES) / MOS_DIM)
        )
        self.register_buffer("pe", torch.stack([turns.sin(), turns.cos()], -1).flatten(1)[None])

    def forward(self, h: Float[Tensor, "batch frame dim"]) -> Float[Tensor, "batch frame dim"]:
        return h + self.pe


class FrameTransformer(nn.Module):
    """Features to hidden states, frame by frame and then in the light of each other."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = FrameNorm(features)
        self.position_encoding = SinePlaces()
        self.linear_proj = nn.Linear(features, MOS_DIM)
        layer = nn.TransformerEncoderLayer(MOS_DIM, MOS_HEADS, 2 * MOS_DIM, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, MOS_LAYERS, enable_nested_tensor=False)

    def forward(self, h: Float[Tensor, "batch frame feature"]) -> Float[Tensor, "batch frame dim"]:
        return self.transformer_encoder(self.position_encoding(self.linear_proj(self.norm(h))))


class AttentionPool(nn.Module):
    """Hidden states to one number, each frame weighed by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(MOS_DIM, 2 * MOS_DIM)
        self.linear2 = nn.Linear(2 * MOS_DIM, 1)
        self.linear3 = nn.Linear(MOS_DIM, 1)

    def forward(self, h: Float[Tensor, "batch frame dim"]) -> Float[Tensor, " batch"]:
        weights = self.linear2(F.relu(self.linear1(h))).softmax(1)
        return self.linear3((weights * h).sum(1))[:, 0]


class QualityHead(nn.Module):
    """Features of frames to a quality from 0 to 1."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm_input = FrameNorm(features)
        self.transformer = FrameTransformer(features)
        self.norm_trans = FrameNorm(MOS_DIM)
        self.pool = AttentionPool()

    def forward(self, h: Float[Tensor, "batch frame feature"]) -> Float[Tensor, " batch"]:
        return self.pool(self.norm_trans(self.transformer(self.norm_input(h)))).sigmoid()


class DistillMos(nn.Module):
    """Excerpts of MOS_SAMPLES samples to mean opinion scores from 1 to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = SpectrogramConvolutions()
        self.transformer_pool_attn = QualityHead(self.cnn.features)

    def forward(self, excerpts: Float[Tensor, "batch sample"]) -> Float[Tensor, " batch"]:
        excerpts = excerpts / (excerpts.abs().amax(1, keepdim=True) + 1e-8)
        quality = self.transformer_pool_attn(self.cnn(spectrum_parts(excerpts)))
        return LOWEST_MOS + (HIGHEST_MOS - LOWEST_MOS) * quality


def spectrum_parts(excerpts: Float[Tensor, "batch sample"]) -> Float[Tensor, "batch 2 bin frame"]:
    """Real and imaginary part of the spectrum, its magnitudes raised to the power of MOS_COMPRESSION."""
    edge = (MOS_FRAME - MOS_HOP) // 2
    spectrum = torch.stft(
        F.pad(excerpts, (edge, edge), mode="reflect"), MOS_FRAME, MOS_HOP, MOS_FRAME,
        torch.hann_window(MOS_FRAME).to(excerpts), center=False, return_complex=True,
    )  # fmt: skip
    parts = torch.stack([spectrum.real, spectrum.imag], 1)
    level = parts.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    return parts * level ** (MOS_COMPRESSION - 1)


def cut_excerpts(
    samples: Float[Tensor, " sample"], hop_samples: int
) -> Float[Tensor, "excerpt excerpt_sample"]:
    """Excerpts at equal distances of at most `hop_samples`, the first at the start, the last at the end of a song.

    A shorter song is filled up with silence.
    """
    samples = F.pad(samples, (0, max(0, MOS_SAMPLES - len(samples))))
    slack = len(samples) - MOS_SAMPLES
    count = math.ceil(slack / hop_samples) + 1
    starts = [slack * number // max(1, count - 1) for number in range(count)]
    return torch.stack([samples[start : start + MOS_SAMPLES] for start in starts])


@torch.no_grad()
def song_mos(network: DistillMos, samples: Float[Tensor, " sample"], hop_samples: int) -> float:
    """The mean score of the excerpts of a song at MOS_SAMPLE_RATE, one at a time."""
    scores = [network(excerpt[None]) for excerpt in cut_excerpts(samples, hop_samples)]
    return float(torch.cat(scores).mean())


@cache
def load_distill_mos(path: Path) -> DistillMos:
    """The network with the weights of the published file, frozen. CheckpointError for another file."""
    state = read_state_dict(path, "model")
    network = DistillMos()
    check_state(network, state, str(path))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
