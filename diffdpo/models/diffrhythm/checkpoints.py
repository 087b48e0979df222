"""DiffRhythm networks on disk: our folder format and the published ones, strictly loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffdpo.errors import CheckpointError
from diffdpo.hub import Published, find_weights
from diffdpo.models.adapters import merge_adapter, parse_adapters
from diffdpo.models.diffrhythm import published
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.runs import read_json
from diffdpo.weight_files import WEIGHTS, assign, check_state, read_pickle, read_tensors, shapes


@dataclass(frozen=True)
class Checkpoint:
    """A network's configuration and its tensors, mapped from a file, under bare names."""

    where: str
    config: dict[str, Any]
    state: dict[str, Tensor]

    def build(self) -> DiffRhythmTransformer:
        """The network without its weights, on the meta device; CheckpointError unless these weights fit it."""
        try:
            with torch.device("meta"):
                network = DiffRhythmTransformer.from_config(self.config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.where}: no network has such sizes ({error}); {published.looks_like(shapes(self.state))}"
            ) from None
        check_state(network, self.state, self.where, published.looks_like)
        return network


def load_network(
    where: str | Path,
    adapter: str = "",
    dtype: torch.dtype = torch.float32,
    *,
    release: str = "",
    ema: bool = False,
) -> DiffRhythmTransformer:
    """A network from any layout `read_network` knows, with adapters merged in; see `parse_adapters`.

    CheckpointError names the first keys that are missing, unexpected or of another shape.
    """
    checkpoint = read_network(where, release=release, ema=ema)
    network = checkpoint.build()
    assign(network, checkpoint.state, checkpoint.where, dtype, published.looks_like)
    for folder, weight in parse_adapters(adapter):
        merge_adapter(network, folder, weight)
    return network


def read_network(where: str | Path, *, release: str = "", ema: bool = False) -> Checkpoint:
    """Configuration and tensors of a network, whatever their layout. `where` is

    - a folder in our format: `config.json` and safetensors under bare names;
    - a published file, `cfm_model.pt` or safetensors under published names, or the folder that holds the former;
    - a release (`v1.2-base`), or a hub id of a release or of a folder in our format.

    `release` says which model a published file holds where it cannot be told; `ema` takes the moving average.
    """
    name = str(where)
    releases = {entry.repo: entry for entry in published.RELEASES.values()} | published.RELEASES
    if name in releases and not Path(name).exists():
        entry = releases[name]
        path = find_weights(entry.weights, entry.repo, published.FILE, accept_noncommercial=False)
        return _published(path, entry, ema=ema)
    path = Path(name)
    if path.name == WEIGHTS and (path.parent / "config.json").is_file():
        path = path.parent
    if path.is_dir() and (path / published.FILE).is_file() and not (path / WEIGHTS).is_file():
        path = path / published.FILE
    if path.is_file():
        return _published(path, release, ema=ema)
    if not path.is_dir():
        unknown = Published(name="a DiffRhythm network", repo=name, license="see its model card")
        find_weights(unknown, name, WEIGHTS, accept_noncommercial=False)
        path = find_weights(unknown, name, "config.json", accept_noncommercial=False).parent
    return Checkpoint(str(path), read_json(path / "config.json"), read_tensors(path / WEIGHTS))


def _published(path: Path, release: published.Release | str, *, ema: bool) -> Checkpoint:
    saved = read_pickle(path) if path.suffix != ".safetensors" else read_tensors(path)
    state = published.unwrap(saved, str(path), ema=ema)
    found = shapes(state)
    if isinstance(release, str):
        release = published.release_of(str(path.absolute()), found, release)
    return Checkpoint(str(path), published.config_of(release, found), state)


def save_published(state: Mapping[str, Tensor], path: Path) -> None:
    """The published layout, for the tools of others: a pickle, or safetensors if `path` ends so."""
    wrapped = {name: tensor.contiguous() for name, tensor in published.wrap(state).items()}
    if path.suffix == ".safetensors":
        save_file(wrapped, path, metadata={"format": "pt"})
    else:
        torch.save({published.MODEL_STATE: wrapped}, path)
