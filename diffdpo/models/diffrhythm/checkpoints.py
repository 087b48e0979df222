"""DiffRhythm networks on disk: our folder format and the published ones, strictly loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffdpo.disk import disk_errors
from diffdpo.errors import CheckpointError, reason
from diffdpo.hub import Published, find_weights
from diffdpo.models.adapter_config import AdapterConfig
from diffdpo.models.adapters import Adapters
from diffdpo.models.checkpoints import read_config
from diffdpo.models.diffrhythm import published
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.timed_adapters import apply_adapters
from diffdpo.weight_files import WEIGHTS, assign, check_state, read_pickle, read_tensors, shapes


@dataclass(frozen=True)
class Checkpoint:
    """A network's configuration and its tensors, mapped from a file, under bare names."""

    location: str
    config: dict[str, Any]
    state: dict[str, Tensor]

    def build(self) -> DiffRhythmTransformer:
        """The network without weights, on the meta device; CheckpointError unless the tensors fit the network."""
        try:
            with torch.device("meta"):
                network = DiffRhythmTransformer.from_config(self.config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.location}: no network has such sizes ({reason(error)}); "
                f"{published.looks_like(shapes(self.state))}"
            ) from None
        check_state(network, self.state, self.location, published.looks_like)
        return network


def load_network(
    location: str | Path,
    adapter: Adapters = "",
    dtype: torch.dtype = torch.float32,
    *,
    release: str = "",
    ema: bool = False,
    adapters: Sequence[AdapterConfig] = (),
) -> DiffRhythmTransformer:
    """A network from any layout that `read_network` reads, with adapters on it; see `apply_adapters`.

    CheckpointError names the first keys that are missing, unexpected or of another shape.
    """
    checkpoint = read_network(location, release=release, ema=ema)
    network = checkpoint.build()
    assign(network, checkpoint.state, checkpoint.location, dtype, published.looks_like)
    apply_adapters(network, adapter, adapters)
    return network


def read_network(location: str | Path, *, release: str = "", ema: bool = False) -> Checkpoint:
    """Configuration and tensors of a network, whatever their layout. `location` is

    - a folder in our format: `config.json` and safetensors under bare names;
    - a published file, `cfm_model.pt` or safetensors under published names, or the folder that holds the former;
    - a release (`v1.2-base`), or a hub id of a release or of a folder in our format.

    `release` names the model of a published file that does not identify itself; `ema` takes the moving average.
    """
    name = str(location)
    releases = {entry.repo: entry for entry in published.RELEASES.values()} | published.RELEASES
    if name in releases and not Path(name).exists():
        entry = releases[name]
        path = find_weights(entry.weights, entry.repo, published.CHECKPOINT_FILE, accept_noncommercial=False)
        return _read_published(path, entry, ema=ema)
    path = Path(name)
    if path.name == WEIGHTS and (path.parent / "config.json").is_file():
        path = path.parent
    if path.is_dir() and (path / published.CHECKPOINT_FILE).is_file() and not (path / WEIGHTS).is_file():
        path = path / published.CHECKPOINT_FILE
    if path.is_file():
        return _read_published(path, release, ema=ema)
    if not path.is_dir():
        source = Published(name="a DiffRhythm network", repo=name, license="see its model card")
        find_weights(source, name, WEIGHTS, accept_noncommercial=False)
        path = find_weights(source, name, "config.json", accept_noncommercial=False).parent
    return Checkpoint(str(path), read_config(path / "config.json"), read_tensors(path / WEIGHTS))


def _read_published(path: Path, release: published.Release | str, *, ema: bool) -> Checkpoint:
    content = read_pickle(path) if path.suffix != ".safetensors" else read_tensors(path)
    state = published.unwrap(content, str(path), ema=ema)
    tensor_shapes = shapes(state)
    if isinstance(release, str):
        release = published.release_of(str(path.absolute()), tensor_shapes, release)
    return Checkpoint(str(path), published.config_of(release, tensor_shapes), state)


def save_published(state: Mapping[str, Tensor], path: Path) -> None:
    """The published layout, for other implementations: a pickle, or safetensors where `path` has that suffix."""
    tensors = {name: tensor.contiguous() for name, tensor in published.wrap(state).items()}
    with disk_errors(path):
        if path.suffix == ".safetensors":
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            torch.save({published.MODEL_STATE: tensors}, path)
