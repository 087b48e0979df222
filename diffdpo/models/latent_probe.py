"""A small probe that reads an axis off noised latents, with the file that holds it and says where it is from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from diffdpo.errors import CheckpointError, reason
from diffdpo.runs import atomic_write
from diffdpo.weight_files import check_weights_file

PROBE_KEY = "probe"
"""Entry of a file's metadata that holds the card as JSON."""
KERNEL, TIMES = 5, 4


def pooled_features(
    frames: Float[Tensor, "row frame feature"], mask: Bool[Tensor, "row frame"]
) -> Float[Tensor, "row pooled"]:
    """Features of whole songs: the mean, the standard deviation and the mean absolute change from frame to frame of
    every feature, over the frames that exist. Gradients pass."""
    weights = mask[..., None].to(frames)
    frames = torch.where(mask[..., None], frames, 0)
    count = weights.sum(1).clamp(min=1)
    mean = frames.sum(1) / count
    variance = ((frames - mean[:, None]) ** 2 * weights).sum(1) / count
    pairs = weights[:, 1:] * weights[:, :-1]
    change = ((frames[:, 1:] - frames[:, :-1]).abs() * pairs).sum(1) / pairs.sum(1).clamp(min=1)
    return torch.cat([mean, (variance + 1e-6).sqrt(), change], 1)


class LatentProbe(nn.Module):
    """An axis in standard deviations from noised latents and their t: two convolutions over time, pooled features
    of their output and of the latents, and a small network on these."""

    def __init__(self, channels: int, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.channels, self.width, self.hidden = channels, width, hidden
        self.first = nn.Conv1d(channels, width, KERNEL, padding=KERNEL // 2)
        self.second = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2)
        self.inner = nn.Linear(3 * (channels + width) + 2 * TIMES, hidden)
        self.outer = nn.Linear(hidden, 1)

    def forward(
        self,
        x: Float[Tensor, "row frame channel"],
        t: Float[Tensor, " row"],
        mask: Bool[Tensor, "row frame"],
    ) -> Float[Tensor, " row"]:
        """The expected value of the axis for each song, in standard deviations; padding has no effect."""
        x = torch.where(mask[..., None], x, 0)
        h = F.gelu(self.first(x.transpose(1, 2))).where(mask[:, None], 0)
        h = F.gelu(self.second(h)).transpose(1, 2)
        turns = torch.pi * t.to(x)[:, None] * 2.0 ** torch.arange(TIMES).to(x)
        times = torch.cat([turns.sin(), turns.cos()], 1)
        features = torch.cat([pooled_features(x, mask), pooled_features(h, mask), times], 1)
        return self.outer(F.gelu(self.inner(features)))[:, 0]


@dataclass(frozen=True, kw_only=True)
class ProbeCard:
    """What a probe was fitted to, and how well it does on songs of other prompts."""

    axis: str
    center: float
    """Mean of the axis over the songs of the fit."""
    scale: float
    """Standard deviation of the axis."""
    correlation: float
    """With the axis on songs of prompt groups that were held out: the mean over times."""
    correlations: Mapping[str, float] = field(default_factory=dict)
    """By time t."""
    group_correlations: Mapping[str, float] = field(default_factory=dict)
    """The same among songs of one prompt group, by time t."""
    songs: int = 0
    held_out_songs: int = 0
    scorer: str = ""
    """Fingerprint of the scorer of the axis."""
    model: str = "{}"
    """JSON: name and arguments of the model whose songs these are."""
    data: str = ""
    """Digest of the ids and values of the songs."""
    seed: int = 0
    version: str = ""


def save_probe(path: Path, probe: LatentProbe, card: ProbeCard) -> None:
    """Write a probe and its card as one safetensors file, complete or not at all."""
    sizes = {"channels": probe.channels, "width": probe.width, "hidden": probe.hidden}
    metadata = {PROBE_KEY: json.dumps({**asdict(card), "sizes": sizes}, sort_keys=True)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in probe.state_dict().items()}
    atomic_write(path, save(tensors, metadata))


def read_probe(path: Path) -> tuple[LatentProbe, ProbeCard]:
    """A probe, frozen, and its card. CheckpointError for what is none."""
    check_weights_file(path)
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})[PROBE_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        probe = LatentProbe(**values.pop("sizes"))
        probe.load_state_dict(tensors)
        card = ProbeCard(**values)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a probe of `diffdpo probe fit` ({reason(error)}); fit it again"
        ) from None
    return probe.eval().requires_grad_(False), card
