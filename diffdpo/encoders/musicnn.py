"""musicnn (Pons & Serra 2019): 50 tags and a 200-dimensional embedding of every 3 s of music.

The network is built here; its weights come from the PyPI distribution musicnn 0.1.0 (ISC licence), trained on
MagnaTagATune. That package itself is never imported: it wants TensorFlow 1.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

from diffdpo.encoders.tensorflow_bundle import read_bundle
from diffdpo.errors import DataError

MUSICNN_SAMPLE_RATE = 16_000
MUSICNN_BANDS = 96
EMBEDDING = 200
PATCH_FRAMES = 187
"""3 s at a hop of 256 samples."""
PATCH_CHUNK = 8
"""Patches in one forward pass, which bounds the memory a long song takes."""
LAYER_CHUNK = 1250
CONTEXT_FRAMES = 73
"""Frames on either side that a frame's layers depend on."""
LAYER_FRAMES_PER_SECOND = MUSICNN_SAMPLE_RATE / 256
SHA256 = "041f3935e981a65cea739842d30c188d3a7d2adf4410955c8668eb3de4a5acab"
"""Hash of the weights in musicnn 0.1.0."""

# fmt: off
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano",
    "ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing", "vocals",
    "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop", "soft",
    "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice", "female vocal",
    "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice", "choral",
)
# fmt: on
"""The tags of MagnaTagATune, in the order of the output."""


@dataclass(frozen=True, kw_only=True)
class MusicnnOutput:
    """Tags and embeddings by musicnn. A row is a patch of 3 s, or a full clip."""

    tags: Float[Tensor, "row 50"]
    """Probabilities of TAGS."""
    embedding: Float[Tensor, "row 200"]
    """The last layer before the tags ("penultimate")."""


class FilterBank(nn.Module):
    """Convolution of a spectrogram with filters of `frames` x `bands`, then the maximum over bands."""

    def __init__(self, num: int, frames: int, bands: int) -> None:
        super().__init__()
        self.padding = (0, 0, (frames - 1) // 2, frames // 2)
        self.conv = nn.Conv2d(1, num, (frames, bands))
        self.norm = nn.BatchNorm1d(num, eps=1e-3)

    def forward(self, x: Float[Tensor, "patch 1 frame band"]) -> Float[Tensor, "patch filter frame"]:
        """The maximum over bands of norm(relu(conv(x))): normalised after the rectifier, as trained.

        The maximum is taken before rectifier and norm, which then work on one band instead of up to 96. Both are
        monotonic; where the norm's weight is negative, the filter's sign is reversed before and after.
        """
        assert self.conv.bias is not None
        sign = torch.where(self.norm.weight < 0, -1.0, 1.0)
        weight = self.conv.weight * sign[:, None, None, None]
        maps = F.conv2d(F.pad(x, self.padding), weight, self.conv.bias * sign)
        return self.norm(F.relu(maps.amax(3) * sign[:, None]))


class Musicnn(nn.Module):
    """Wide filters for timbre, long ones for rhythm, three dense layers in time, pooling.

    The original extractor returns the embedding of the first patch for all patches; here each has its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spectrogram = MelSpectrogram(
            MUSICNN_SAMPLE_RATE,
            512,
            hop_length=256,
            n_mels=MUSICNN_BANDS,
            norm="slaney",
            mel_scale="slaney",
            pad_mode="constant",
        )
        self.input_norm = nn.BatchNorm2d(1, eps=1e-3)
        self.timbre = nn.ModuleList([FilterBank(204, 7, bands) for bands in (38, 67)])
        self.rhythm = nn.ModuleList([FilterBank(51, frames, 1) for frames in (128, 64, 32)])
        self.middle = nn.ModuleList([_layer(channels) for channels in (561, 64, 64)])
        self.pool_norm = nn.BatchNorm1d(1506, eps=1e-3)
        self.dense = nn.Linear(1506, 200)
        self.dense_norm = nn.BatchNorm1d(200, eps=1e-3)
        self.output = nn.Linear(200, len(TAGS))

    def patches(self, samples: Float[Tensor, " sample"]) -> Float[Tensor, "patch frame band"]:
        """Log-mel patches of 3 s of 16 kHz audio, end to end.

        A remainder is dropped, a shorter clip repeated. All in float32: the original rounds the power to
        float16 first, which changes little, and overflows under numpy 2.
        """
        frames = torch.log10(1 + 10_000 * self.spectrogram(samples)).T
        if len(frames) < PATCH_FRAMES:
            frames = frames.repeat(-(-PATCH_FRAMES // len(frames)), 1)
        num = len(frames) // PATCH_FRAMES
        return frames[: num * PATCH_FRAMES].reshape(num, PATCH_FRAMES, MUSICNN_BANDS)

    def forward(self, patches: Float[Tensor, "patch frame band"]) -> MusicnnOutput:
        features = self.layers(patches)
        pooled_features = torch.stack([features.amax(2), features.mean(2)], dim=2).flatten(1)
        embedding = self.dense_norm(self.dense(self.pool_norm(pooled_features)).relu())
        return MusicnnOutput(tags=self.output(embedding).sigmoid(), embedding=embedding)

    def layers(self, patches: Float[Tensor, "patch frame band"]) -> Float[Tensor, "patch 753 frame"]:
        """What the front end and the dense layers say of every frame, before pooling."""
        x = self.input_norm(patches[:, None])
        front = torch.cat([bank(x) for bank in [*self.timbre, *self.rhythm]], dim=1)
        layers = [front, self.middle[0](front)]
        for layer in self.middle[1:]:
            layers.append(layers[-1] + layer(layers[-1]))
        return torch.cat(layers, dim=1)

    @torch.no_grad()
    def describe_frames(self, samples: Float[Tensor, " sample"]) -> Float[Tensor, "frame 753"]:
        """The layers of every frame of 16 ms of a mono clip at 16 kHz, as if it were one patch."""
        frames = torch.log10(1 + 10_000 * self.spectrogram(samples)).T
        parts = []
        for begin in range(0, len(frames), LAYER_CHUNK):
            first, end = max(0, begin - CONTEXT_FRAMES), min(len(frames), begin + LAYER_CHUNK)
            part = self.layers(frames[None, first : end + CONTEXT_FRAMES])[0].T
            parts.append(part[begin - first : end - first])
        return torch.cat(parts)

    def describe(self, clips: Sequence[Float[Tensor, " _"]]) -> MusicnnOutput:
        """Tags and embedding of every clip: the mean over its patches."""
        outputs = [self.embed(samples) for samples in clips]
        return MusicnnOutput(
            tags=torch.stack([output.tags.mean(0) for output in outputs]),
            embedding=torch.stack([output.embedding.mean(0) for output in outputs]),
        )

    @torch.no_grad()
    def embed(self, samples: Float[Tensor, " sample"]) -> MusicnnOutput:
        """Tags and embedding of every patch of 3 s of a mono clip at 16 kHz."""
        parts = [self(chunk) for chunk in self.patches(samples).split(PATCH_CHUNK)]
        return MusicnnOutput(
            tags=torch.cat([part.tags for part in parts]),
            embedding=torch.cat([part.embedding for part in parts]),
        )


def _layer(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(channels, 64, 7, padding=3), nn.ReLU(), nn.BatchNorm1d(64, eps=1e-3))


def load_musicnn() -> Musicnn:
    """The pretrained network, frozen. DataError, with the command that installs it, when it is missing."""
    index, data = weight_files()
    network = Musicnn()
    weights = convert_weights(read_bundle(index, data, is_wanted=lambda name: "Adam" not in name))
    network.load_state_dict(network.state_dict() | weights)  # strict: every name and shape must fit
    return network.eval().requires_grad_(False)


@cache
def pretrained_musicnn() -> Musicnn:
    """The network of `load_musicnn`, loaded once a process."""
    return load_musicnn()


def weight_files() -> tuple[Path, Path]:
    """Index and data of the checkpoint inside the installed distribution, without importing it."""
    install = "install it with: pip install --no-deps musicnn==0.1.0"
    try:
        distribution = metadata.distribution("musicnn")
    except metadata.PackageNotFoundError as error:
        raise DataError(f"the weights of musicnn are not installed; {install}") from error
    folder = Path(str(distribution.locate_file("musicnn/MTT_musicnn")))
    index, data = folder / ".index", folder / ".data-00000-of-00001"
    if not (index.is_file() and data.is_file()):
        raise DataError(f"{folder}: the weights of musicnn are not there; {install}")
    if hashlib.sha256(data.read_bytes()).hexdigest() != SHA256:
        raise DataError(f"{data}: not the weights of musicnn 0.1.0; {install}")
    return index, data


def convert_weights(tensors: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights under our names, from a checkpoint that numbers its layers in the order of their making.

    TensorFlow's axes are [frame, band, in, out] and [in, out]. What the middle layers call bands are our
    channels.
    """
    banks = ["timbre.0", "timbre.1", "rhythm.0", "rhythm.1", "rhythm.2"]
    middle = ["middle.0", "middle.1", "middle.2"]
    norms = [
        "input_norm",
        *(f"{b}.norm" for b in banks),
        *(f"{m}.2" for m in middle),
        "pool_norm",
        "dense_norm",
    ]
    state = {}
    for i, target in enumerate(norms):
        for key, name in zip(
            ("weight", "bias", "running_mean", "running_var"),
            ("gamma", "beta", "moving_mean", "moving_variance"),
            strict=True,
        ):
            state[f"{target}.{key}"] = tensors[f"{_layer_name('batch_normalization', i)}/{name}"]
    for i, target in enumerate([*(f"{b}.conv" for b in banks), *(f"{m}.0" for m in middle)]):
        kernel = tensors[f"{_layer_name('conv2d', i)}/kernel"].transpose(3, 2, 0, 1)
        state[f"{target}.weight"] = kernel if i < len(banks) else kernel[:, 0].swapaxes(1, 2)
        state[f"{target}.bias"] = tensors[f"{_layer_name('conv2d', i)}/bias"]
    for i, target in enumerate(["dense", "output"]):
        state[f"{target}.weight"] = tensors[f"{_layer_name('dense', i)}/kernel"].T
        state[f"{target}.bias"] = tensors[f"{_layer_name('dense', i)}/bias"]
    return {name: torch.from_numpy(array.copy()) for name, array in state.items()}


def _layer_name(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name
