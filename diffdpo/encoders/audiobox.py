"""The network of Audiobox-Aesthetics (Tjandra et al. 2025): WavLM, and four ratings of every ten seconds.

Built here, with the published names of its parameters. The scorer is `diffdpo.scorers.audiobox`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffdpo.devices import choose_device
from diffdpo.encoders.wavlm import WAVLM_SAMPLE_RATE, Frames, WavLM, WavLMConfig, published_config
from diffdpo.errors import CheckpointError, DataError, reason
from diffdpo.runs import read_json
from diffdpo.weight_files import check_weights_file, shapes, unpickle, unreadable

AXES = ("CE", "CU", "PC", "PQ")
"""Names of the four ratings in the checkpoint, in the published order."""
AUDIOBOX_WINDOW = 10 * WAVLM_SAMPLE_RATE


@dataclass(frozen=True, kw_only=True)
class PaddedWindows:
    """A song cut into windows of ten seconds, end to end; the last one is filled up with silence."""

    samples: Float[Tensor, "window sample"]
    lengths: Int[Tensor, " window"]
    """Samples of each window that belong to the song."""

    @property
    def weights(self) -> Float[Tensor, " window"]:
        return self.lengths / AUDIOBOX_WINDOW


def cut_windows(samples: Float[Tensor, " sample"], min_tail: int = 0) -> PaddedWindows:
    """Windows of a song. A last one with fewer samples than `min_tail` is left out, unless it is the only one."""
    num, tail = divmod(len(samples), AUDIOBOX_WINDOW)
    if num and tail < min_tail:
        samples, tail = samples[: num * AUDIOBOX_WINDOW], 0
    lengths = torch.tensor([AUDIOBOX_WINDOW] * num + [tail] * (tail > 0))
    padded_samples = F.pad(samples, (0, len(lengths) * AUDIOBOX_WINDOW - len(samples)))
    return PaddedWindows(samples=padded_samples.reshape(-1, AUDIOBOX_WINDOW), lengths=lengths)


def song_score(scores: Float[Tensor, "window 4"], windows: PaddedWindows) -> Float[Tensor, "4"]:
    """The ratings of a song: the mean over its windows, weighted by length."""
    weights = windows.weights[:, None]
    return (scores * weights).sum(0) / weights.sum()


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Configuration of the heads behind WavLM, from the published config.json."""

    layers: int
    layer_norm: bool
    dropout: bool
    """Whether there was dropout in training, which moves the numbers of the layers."""
    normalise: bool
    """Whether embeddings are scaled to length 1."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Standard deviation of the training ratings of each axis: the unit of predictions."""


class AudioboxNetwork(nn.Module):
    """WavLM with a head an axis: a weighting of WavLM's layers and a small network on the mean over time."""

    def __init__(self, encoder: WavLMConfig, heads: HeadConfig) -> None:
        super().__init__()
        self.heads = heads
        self.wavlm_model = WavLM(encoder)
        self.proj_layer = nn.ModuleDict({axis: _head(encoder.dim, heads) for axis in AXES})
        self.layer_weights = nn.ParameterDict(
            {axis: nn.Parameter(torch.zeros(encoder.layers + 1)) for axis in AXES}
        )

    def forward(
        self, samples: Float[Tensor, "window sample"], lengths: Int[Tensor, " window"]
    ) -> Float[Tensor, "window 4"]:
        """Ratings of windows of 16 kHz audio, on the published scale."""
        return self.to_scale(self.predict(self.wavlm_model(samples, lengths)))

    def predict(self, frames: Frames) -> Float[Tensor, "window 4"]:
        """Ratings in standard deviations. The mean over time comes first: it commutes with the sum over layers."""
        mask = frames.valid[..., None]
        means = torch.stack([(h * mask).sum(1) for h in frames.layers]) / mask.sum(1)
        ratings = []
        for axis in AXES:
            embedding = torch.einsum("lwd,l->wd", means, self.layer_weights[axis].softmax(0))
            if self.heads.normalise:
                embedding = F.normalize(embedding, dim=-1)
            ratings.append(self.proj_layer[axis](embedding)[:, 0])
        return torch.stack(ratings, dim=1)

    def to_scale(self, prediction: Float[Tensor, "window 4"]) -> Float[Tensor, "window 4"]:
        mean, std = prediction.new_tensor([self.heads.mean, self.heads.std])
        return prediction * std + mean


def _head(dim: int, config: HeadConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(config.layers - 1):
        layers.append(nn.Linear(dim, dim))
        layers += [nn.LayerNorm(dim)] * config.layer_norm
        layers += [nn.GELU(), *[nn.Identity()] * config.dropout]
    return nn.Sequential(*layers, nn.Linear(dim, 1))


@torch.no_grad()
def rate_windows(network: AudioboxNetwork, windows: PaddedWindows, batch: int) -> Float[Tensor, "window 4"]:
    """Ratings of all windows, `batch` at a time, on the device of the network."""
    device = next(network.parameters()).device
    parts = zip(windows.samples.split(batch), windows.lengths.split(batch), strict=True)
    return torch.cat([network(samples.to(device), lengths.to(device)).cpu() for samples, lengths in parts])


AUDIOBOX_SETTINGS = {
    "sample_rate": WAVLM_SAMPLE_RATE,
    "proj_act_fn": "gelu",
    "use_weighted_layer_sum": True,
    "output_dim": 1,
}
"""Other values of these are not supported. `precision` is not read: the original never switches to it."""


def published_heads(published: Mapping[str, Any], encoder_layers: int) -> HeadConfig:
    """The configuration of the heads from published settings. DataError for settings that are not supported."""
    for name, value in {**AUDIOBOX_SETTINGS, "nth_layer": encoder_layers + 1}.items():
        if published.get(name, value) != value:
            raise DataError(f"Audiobox with {name}={published[name]!r} is not supported, only {value!r}")
    try:
        scale = [published["target_transform"][axis] for axis in AXES]
        return HeadConfig(
            layers=int(published.get("proj_num_layer", 1)),
            layer_norm=bool(published.get("proj_ln", False)),
            dropout=float(published.get("proj_dropout", 0)) != 0,
            normalise=bool(published.get("normalize_embed", True)),
            mean=tuple(float(axis["mean"]) for axis in scale),
            std=tuple(float(axis["std"]) for axis in scale),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the configuration of Audiobox lacks or garbles {error}") from None


def load_audiobox(weights: Path, config: Path | None = None) -> AudioboxNetwork:
    """The pretrained network, frozen, in fp32: the hub's files, or the single checkpoint.pt.

    The sizes of WavLM may be given in config.json as `wavlm_config`; published ones do not and mean WavLM-Base+.
    Loading is strict. DataError for a damaged file, CheckpointError for the weights of another model.
    """
    if config is None:
        state, published = _read_checkpoint(weights)
    else:
        state, published = _read_safetensors(weights), read_json(config)
    if not isinstance(published, Mapping):
        raise DataError(f"{config or weights}: expected the configuration of Audiobox")
    return build_audiobox(state, published, location=str(weights))


def build_audiobox(
    state: Mapping[str, Tensor], published: Mapping[str, Any], location: str
) -> AudioboxNetwork:
    """A network of this configuration with these weights, every key and shape checked."""
    encoder = published_config(published.get("wavlm_config", {}))
    heads = published_heads(published, encoder.layers)
    with torch.device("meta"):
        network = AudioboxNetwork(encoder, heads)
    network_state = {name: tensor.float() for name, tensor in state.items() if name != "wavlm_model.mask_emb"}
    needs, holds = shapes(network.state_dict()), shapes(network_state)
    differ = sorted(name for name in needs.keys() | holds.keys() if needs.get(name) != holds.get(name))
    if differ:
        first = f"{differ[0]} is {holds.get(differ[0], 'missing')}, not {needs.get(differ[0], 'expected')}"
        raise CheckpointError(f"{location}: not weights of Audiobox: {len(differ)} tensors differ; {first}")
    network.load_state_dict(network_state, assign=True)
    return network.eval().requires_grad_(False)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_weights_file(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, f"cannot be read as safetensors: {reason(error)}") from None


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = unpickle(path)
    try:
        state = {name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()}
        return state, {**content["model_cfg"], "target_transform": content["target_transform"]}
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a checkpoint of Audiobox ({reason(error)})") from None


@cache
def cached_audiobox(paths: tuple[Path, ...]) -> AudioboxNetwork:
    """The network of these files, loaded once a process, on the GPU if there is one."""
    return load_audiobox(*paths).to(choose_device())
