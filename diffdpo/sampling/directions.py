"""Directions on disk: what is added to the activations of a network, with the probes that watch it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from diffdpo.errors import DataError, reason
from diffdpo.models.adapter_config import block_names
from diffdpo.runs import atomic_write
from diffdpo.sampling.activations import check_site
from diffdpo.sampling.probes import FeatureScale, Probes
from diffdpo.weight_files import read_tensors

METADATA = "direction"
"""The key of a direction's provenance in its file."""
MONITOR_PROBES = 16
"""Heads whose probabilities are watched: the best ones, as in SMITIN."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a direction comes from."""

    network: str
    """Class of the network, with its number of blocks."""
    blocks: tuple[int, ...]
    """Numbers of the blocks, from 0."""
    times: tuple[float, ...]
    site: str = ""
    """Part of a block whose input the direction is in; empty: what the block puts out."""
    model: str = ""
    """Digest of the model: its name, arguments and files."""
    fingerprint: str = ""
    """Of the model's encoders."""
    counts: tuple[int, int] = (0, 0)
    """Songs of the first class and of the second."""
    data: tuple[str, str] = ("", "")
    """Digests of the latents of either class."""
    axis: str = ""
    """By which the songs were halved; empty for two sets that were given."""
    seed: int = 0
    version: str = ""
    """Of this package."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Direction:
    """A vector for each of some blocks, with the weight of each head, and probes that were held out of it."""

    vectors: Float[Tensor, "block channel"]
    """The mean of the first class minus that of the second."""
    weights: Float[Tensor, "block head"]
    """Soft weights of the heads, by the accuracy of their probes."""
    accuracy: Float[Tensor, "block head"]
    """Of the probes of the songs that gave the direction, on the other songs."""
    monitor: Probes
    """Probes of the songs that did not give the direction."""
    scale: FeatureScale
    provenance: Provenance = field(default_factory=lambda: Provenance(network="", blocks=(), times=()))

    def weighted_vectors(self) -> Float[Tensor, "block channel"]:
        """The vectors, each head times its weight."""
        heads = self.weights.shape[1]
        parts = self.vectors.unflatten(1, (heads, -1))
        return (parts * self.weights[..., None].to(parts)).flatten(1)

    def concentration(
        self, features: Float[Tensor, "row block channel"], t: Float[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The median probability of the first class among the best probes that were held out."""
        probability = self.monitor.probability(self.scale.standardise(features.double(), t)).flatten(1)
        return probability[:, self._best()].double().quantile(0.5, dim=1)

    def threshold(self) -> float:
        """Median minus standard deviation of the accuracies of the best probes."""
        accuracy = self.monitor.accuracy.flatten()[self._best()]
        return float(accuracy.quantile(0.5) - accuracy.std(correction=0))

    def _best(self) -> Tensor:
        accuracy = self.monitor.accuracy.flatten()
        return accuracy.argsort(descending=True, stable=True)[:MONITOR_PROBES]


def network_kind(network: Any) -> str:
    """The class of a network with its number of blocks: to what a direction belongs."""
    return f"{type(network).__name__}/{len(block_names(network))}"


def save_direction(path: Path, direction: Direction) -> None:
    """Write a direction as one safetensors file."""
    tensors = {
        "vectors": direction.vectors,
        "weights": direction.weights,
        "accuracy": direction.accuracy,
        "monitor.weights": direction.monitor.weights,
        "monitor.bias": direction.monitor.bias,
        "monitor.accuracy": direction.monitor.accuracy,
        "scale.times": direction.scale.times,
        "scale.center": direction.scale.center,
        "scale.spread": direction.scale.scale,
    }
    text = json.dumps(asdict(direction.provenance), sort_keys=True)
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    atomic_write(path, save(content, metadata={METADATA: text}))


def read_direction(path: Path) -> Direction:
    """A direction from its file; DataError for a file that holds none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with `diffdpo direction fit`")
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA, "")
    try:
        return _direction(tensors, json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no direction of `diffdpo direction fit` ({reason(error)})") from None


def _direction(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Direction:
    lists: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return Direction(
        vectors=tensors["vectors"],
        weights=tensors["weights"],
        accuracy=tensors["accuracy"],
        monitor=Probes(
            weights=tensors["monitor.weights"],
            bias=tensors["monitor.bias"],
            accuracy=tensors["monitor.accuracy"],
        ),
        scale=FeatureScale(
            times=tensors["scale.times"], center=tensors["scale.center"], scale=tensors["scale.spread"]
        ),
        provenance=Provenance(**lists),
    )


def check_direction(direction: Direction, network: Any, blocks: Sequence[int], path: str) -> None:
    """DataError for a direction of another network, or without some of the blocks that are asked of it."""
    provenance = direction.provenance
    if provenance.network != network_kind(network):
        raise DataError(
            f"{path}: a direction of {provenance.network} (class/blocks), this model has {network_kind(network)}; "
            "fit one with this model"
        )
    check_site(network, provenance.site, path)
    for block in blocks:
        if block not in provenance.blocks:
            raise DataError(
                f"{path}: holds the blocks {', '.join(map(str, provenance.blocks))}, not {block}; fit one with it"
            )
    vectors = direction_blocks(direction, blocks)
    if not any(vector.any() for vector in vectors.values()):
        raise DataError(
            f"{path}: the weights of block {', '.join(map(str, vectors))}, whose probes were the worst, are 0: "
            "nothing would move; name other blocks, or fit a direction of these alone"
        )


def direction_blocks(direction: Direction, blocks: Sequence[int]) -> dict[int, Float[Tensor, " channel"]]:
    """The weighted vector of each block, of all blocks of the direction where none is named."""
    vectors = dict(zip(direction.provenance.blocks, direction.weighted_vectors(), strict=True))
    return {block: vectors[block] for block in (blocks or direction.provenance.blocks)}
