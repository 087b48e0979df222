"""The network of SongEval (Yao et al. 2025): attention over MuQ's features, and five ratings of a whole song.

Built here, with the published names of its parameters. The scorer is `diffdpo.scorers.songeval`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdpo.devices import choose_device
from diffdpo.encoders import muq
from diffdpo.encoders.conformer import Hidden, Valid, attend
from diffdpo.errors import DataError, reason
from diffdpo.weight_files import check_weights_file, unreadable

HEADS = 8
"""Attention heads of the rating network, whatever its size."""
BLOCKS = 6
"""The head takes MuQ's sixth hidden state; the blocks above it are never built."""


class RatingAttention(nn.Module):
    """Attention with the parameters of nn.MultiheadAttention, whose memory does not grow with pairs of frames."""

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
        self.attn = nn.ModuleList(RatingAttention(dim) for _ in range(layers))
        self.fc = nn.Linear(2 * dim, axes)

    def forward(self, h: Hidden, valid: Valid = None) -> Float[Tensor, "batch axis"]:
        features = self.ffd(h)
        mixture = features
        for layer in self.attn:
            mixture = layer(mixture, valid)
        if valid is None:
            mean, peak = mixture.mean(1), features.amax(1)
        else:
            mask = valid[..., None]
            mean = mixture.masked_fill(~mask, 0).sum(1) / mask.sum(1)
            peak = features.masked_fill(~mask, -torch.inf).amax(1)
        return self.fc(torch.cat([mean, peak], dim=-1)).tanh() * 2 + 3


@dataclass(frozen=True)
class SongEvalNetwork:
    """The encoder and the head, on one device."""

    encoder: muq.MuQ
    head: Head

    @torch.no_grad()
    def rate(self, waves: Sequence[Float[np.ndarray, " _"]]) -> Float[Tensor, "clip axis"]:
        """Ratings of mono clips at 24 kHz, each as if it were alone."""
        device = next(self.head.parameters()).device
        return self.head(*self.encoder.embed([torch.from_numpy(wave).to(device) for wave in waves]))


def load_head(path: Path) -> Head:
    """The published head, frozen; its sizes are those of the parameters. Other tensors in the file are ignored."""
    check_weights_file(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, f"cannot be read as safetensors: {reason(error)}") from None
    try:
        hidden, dim = tensors["ffd.0.weight"].shape
        axes = len(tensors["fc.bias"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not the head of SongEval: {error}") from None
    with torch.device("meta"):
        head = Head(dim, hidden, sum(name.endswith(".in_proj_bias") for name in tensors), axes)
    muq.fill(head, {name: t for name, t in tensors.items() if name in head.state_dict()}, str(path))
    return head


@cache
def load_songeval(encoder: Path, head: Path, dtype: str) -> SongEvalNetwork:
    """Encoder and head, loaded once a process, on the GPU if there is one."""
    device = choose_device()
    features = muq.load_muq(encoder, BLOCKS, getattr(torch, dtype)).to(device)
    ratings = load_head(head).to(device)
    if ratings.fc.in_features != 2 * features.config.dim:
        raise DataError(
            f"{head}: a head for {ratings.fc.in_features // 2} features, MuQ has {features.config.dim}"
        )
    return SongEvalNetwork(features, ratings)
