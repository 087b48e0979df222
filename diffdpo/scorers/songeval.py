"""SongEval (Yao et al. 2025): five ratings of a whole song, learned from those of human annotators."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import librosa
import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdpo import hub as weights
from diffdpo.encoders import muq as muq_encoder
from diffdpo.encoders.conformer import Hidden, Valid, attend
from diffdpo.errors import DataError
from diffdpo.types import Clip

HEADS = 8
"""Of the judge's attention, whatever its size."""
BLOCKS = 6
"""The judge listens to MuQ's sixth hidden state; the blocks above it are never built."""
LOWEST = 1.0
"""The open end of the scale, which silence gets: the published network was never shown any."""
HEAD = weights.Published(
    name="the head of SongEval",
    repo="ASLP-lab/SongEval",
    license="CC-BY-NC-SA-4.0",
    noncommercial=True,
)
HEAD_FILE = "ckpt/model.safetensors"


@dataclass(frozen=True)
class SongEval:
    """How human annotators would rate a song, from 1 to 5.

    songeval.coherence    Overall coherence.
    songeval.musicality   Overall musicality.
    songeval.memorability
    songeval.clarity      Of the song's structure.
    songeval.naturalness  Of vocal breathing and phrasing.

    The whole song is heard at once, as published; only its level is not, since every clip is at -14 LUFS. Silence
    gets 1.

    How it can be gamed: the five axes are one axis, their human ratings correlate at 0.95, so count them as one
    vote. What MuQ's features barely hold is barely judged: form and order. Optimising it raised musicality and
    with it the share of wrong words; keep a gate on lyrics and a judge that hears otherwise. Compare songs of
    one prompt only: vocals, genre and production shift all five.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = (
        "songeval.coherence",
        "songeval.musicality",
        "songeval.memorability",
        "songeval.clarity",
        "songeval.naturalness",
    )
    licenses: ClassVar[tuple[str, ...]] = (muq_encoder.PUBLISHED.license, HEAD.license)
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 10.0

    # What does not change the numbers is left out of repr, and so of the cache key.
    muq: str = field(default="", repr=False)
    """MuQ-large-msd-iter: file, folder or hub id; by default the hub's."""
    head: str = field(default="", repr=False)
    """model.safetensors of SongEval's repository, the folder that holds ckpt/, or the hub id of a copy."""
    accept_noncommercial: bool = field(default=False, repr=False)
    """Both are for non-commercial use only: say that this is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of MuQ's convolutions, most of the work. The rest is fp32 always."""
    batch: int = field(default=1, repr=False)
    """Songs heard at once. More fill a GPU; a score does not depend on it."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    @property
    def weights_hash(self) -> str:
        return hashlib.sha256("".join(map(weights.sha256_of, self._files())).encode()).hexdigest()

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        scores = np.full((len(clips), len(self.axes)), LOWEST)
        heard = {i: at_24_khz(clip) for i, clip in enumerate(clips) if clip.samples.any()}
        order = sorted(heard, key=lambda i: len(heard[i]))  # alike lengths together: little padding
        for begin in range(0, len(order), self.batch):
            rows = order[begin : begin + self.batch]
            scores[rows] = _network(*self._files(), self.dtype).judge([heard[i] for i in rows]).cpu().numpy()
        return scores

    def _files(self) -> tuple[Path, Path]:
        """DataError unless both are there and their licences accepted."""
        consent = self.accept_noncommercial
        encoder = weights.find(
            muq_encoder.PUBLISHED, self.muq, muq_encoder.FILE, accept_noncommercial=consent
        )
        if not self.head:
            raise DataError(
                f"songeval: no head given; fetch {HEAD_FILE} from https://github.com/{HEAD.repo} "
                f"(licence: {HEAD.license}) and set head to its path"
            )
        return encoder, weights.find(HEAD, self.head, HEAD_FILE, accept_noncommercial=consent)


class Attention(nn.Module):
    """Parameters as nn.MultiheadAttention keeps them, without its weights for every pair of frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, h: Hidden, valid: Valid) -> Hidden:
        q, k, v = nn.functional.linear(h, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(attend(q, k, v, HEADS, valid))


class Head(nn.Module):
    """MuQ's features to ratings. Attention without residuals, then the mean of it and the maximum before it."""

    def __init__(self, dim: int, hidden: int, layers: int, axes: int) -> None:
        super().__init__()
        self.ffd = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.attn = nn.ModuleList(Attention(dim) for _ in range(layers))
        self.fc = nn.Linear(2 * dim, axes)

    def forward(self, h: Hidden, valid: Valid = None) -> Float[Tensor, "batch axis"]:
        before = self.ffd(h)
        after = before
        for layer in self.attn:
            after = layer(after, valid)
        if valid is None:
            mean, peak = after.mean(1), before.amax(1)
        else:
            there = valid[..., None]
            mean = after.masked_fill(~there, 0).sum(1) / there.sum(1)
            peak = before.masked_fill(~there, -torch.inf).amax(1)
        return self.fc(torch.cat([mean, peak], dim=-1)).tanh() * 2 + 3


@dataclass(frozen=True)
class Network:
    """The encoder and the head, on one device."""

    encoder: muq_encoder.MuQ
    head: Head

    @torch.no_grad()
    def judge(self, sounds: Sequence[Float[np.ndarray, " _"]]) -> Float[Tensor, "clip axis"]:
        """Ratings of mono sounds at 24 kHz, each as if it were alone."""
        device = next(self.head.parameters()).device
        return self.head(*self.encoder.listen([torch.from_numpy(sound).to(device) for sound in sounds]))


def at_24_khz(clip: Clip) -> Float[np.ndarray, " sample"]:
    """The mean of the channels through the published resampler: decibels up to 12 kHz show its edge.

    What is too short for MuQ is filled up with silence.
    """
    mean = clip.samples.mean(0, dtype=np.float32)
    sound = librosa.resample(
        mean, orig_sr=clip.sample_rate, target_sr=muq_encoder.SAMPLE_RATE, res_type="soxr_hq"
    )
    return np.pad(sound, (0, max(0, muq_encoder.SHORTEST - len(sound))))


def load_head(path: Path) -> Head:
    """The published head, frozen; its sizes are those of the parameters. Others in the file are left alone."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors: {error}") from error
    try:
        hidden, dim = tensors["ffd.0.weight"].shape
        axes = len(tensors["fc.bias"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not the head of SongEval: {error}") from None
    with torch.device("meta"):
        head = Head(dim, hidden, sum(name.endswith(".in_proj_bias") for name in tensors), axes)
    muq_encoder.fill(head, {name: t for name, t in tensors.items() if name in head.state_dict()}, str(path))
    return head


@cache
def _network(encoder: Path, head: Path, dtype: str) -> Network:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    listener = muq_encoder.load(encoder, BLOCKS, getattr(torch, dtype)).to(device)
    judge = load_head(head).to(device)
    if judge.fc.in_features != 2 * listener.config.dim:
        raise DataError(
            f"{head}: a head for {judge.fc.in_features // 2} features, MuQ has {listener.config.dim}"
        )
    return Network(listener, judge)
