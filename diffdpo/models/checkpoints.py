"""Network weights on disk: our folder format and the published ones, strictly loaded, and LoRA adapters.

Files are mapped, never read as a whole: a tensor is copied when its precision changes, one at a time, and otherwise
stays in the file's pages until somebody writes to it. Pickles are opened with `weights_only`, so none can run code.
"""

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffdpo.errors import CheckpointError
from diffdpo.models.diffrhythm import published
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.runs import read_json
from diffdpo.weights import Published, find

WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAPTER = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
"""The key under which diffusers keeps a LoRA's config in the file."""
SHOWN = 3
"""Keys of each kind that an error names."""


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
        check_state(network, self.state, self.where)
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
    assign(network, checkpoint.state, checkpoint.where, dtype)
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
        path = find(entry.weights, entry.repo, published.FILE, accept_noncommercial=False)
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
        find(unknown, name, WEIGHTS, accept_noncommercial=False)
        path = find(unknown, name, "config.json", accept_noncommercial=False).parent
    return Checkpoint(str(path), read_json(path / "config.json"), read_tensors(path / WEIGHTS))


def _published(path: Path, release: published.Release | str, *, ema: bool) -> Checkpoint:
    saved = read_pickle(path) if path.suffix != ".safetensors" else read_tensors(path)
    state = published.unwrap(saved, str(path), ema=ema)
    found = shapes(state)
    if isinstance(release, str):
        release = published.release_of(str(path.absolute()), found, release)
    return Checkpoint(str(path), published.config_of(release, found), state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the weights of a network here")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, mapped."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise CheckpointError(
            f"{path}: cannot be read as tensors saved by torch 1.6 or newer ({reason}); copy or save it again"
        ) from None
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: holds a {type(saved).__name__}, not a dictionary of tensors")
    return saved


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_state(network: torch.nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Every key present, none too many, every shape right."""
    wanted, found = shapes(network.state_dict()), shapes(state)
    missing = [f"{name} {wanted[name]}" for name in wanted if name not in found]
    extra = [f"{name} {found[name]}" for name in found if name not in wanted]
    misshapen = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    complaints = [
        f"{len(names)} {kind}, first {', '.join(names[:SHOWN])}"
        for kind, names in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen))
        if names
    ]
    if complaints:
        raise CheckpointError(
            f"{where}: the weights are of another model: {'; '.join(complaints)}; {published.looks_like(found)}"
        )


def assign(module: torch.nn.Module, state: dict[str, Tensor], where: str, dtype: torch.dtype | None) -> None:
    """Put tensors into a module made on the meta device, one by one; `state` is emptied, so none is held twice."""
    check_state(module, state, where)
    for name in list(state):
        tensor = state.pop(name)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        owner, _, leaf = name.rpartition(".")
        target = module.get_submodule(owner)
        old = getattr(target, leaf)
        if isinstance(old, torch.nn.Parameter):
            setattr(target, leaf, torch.nn.Parameter(tensor, requires_grad=old.requires_grad))
        else:
            target.register_buffer(leaf, tensor)
    module.eval()


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A LoRA's tensors under bare names, and its config."""
    path = folder / ADAPTER
    if not path.is_file():
        hint = (
            "it holds a whole network; give it as network="
            if (folder / WEIGHTS).is_file()
            else f"no {ADAPTER}"
        )
        raise CheckpointError(f"{folder}: no adapter here: {hint}")
    state = read_tensors(path)
    with safe_open(path, "pt") as file:
        config = json.loads((file.metadata() or {}).get(ADAPTER_METADATA, "{}"))
    return {name.removeprefix(published.PREFIX): tensor for name, tensor in state.items()}, config


def parse_adapters(text: str) -> list[tuple[Path, float]]:
    """`runs/a/export@0.5,runs/b/export` to folders and weights, in order; 1 where no weight is given.

    The weights need not sum to one: each says how far to go the way its adapter went. CheckpointError for a weight
    that is not a number.
    """
    found = []
    for one in filter(None, (part.strip() for part in text.split(","))):
        folder, at, weight = one.rpartition("@")
        if not at or "/" in weight or Path(one).is_dir():  # an @ in the folder's own name
            folder, weight = one, "1"
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not folder or not math.isfinite(value):
            raise CheckpointError(f"adapter {one!r}: {weight!r} is not a weight; write FOLDER@0.5")
        found.append((Path(folder), value))
    return found


def merge_adapter(network: DiffRhythmTransformer, folder: Path, weight: float = 1.0) -> None:
    """Add `weight` times a LoRA to the weights: W + weight (alpha / rank) B A.

    Sums commute, so several adapters trained from one network give its LoRA soup whatever their order (LeVo's
    interpolation of per-axis models), and adapters trained on top of each other give the last one.
    """
    state, config = read_adapter(folder)
    modules = dict(network.named_modules())
    for name, tensor in state.items():
        side = 1 if ".lora_A" in name else 0  # A takes what the layer takes, B gives what it gives
        layer = modules.get(name.split(".lora_")[0])
        if not isinstance(layer, torch.nn.Linear) or layer.weight.shape[side] != tensor.shape[side]:
            raise CheckpointError(f"{folder / ADAPTER}: an adapter of another model ({name} does not fit)")
    network.load_lora_adapter(state, prefix=None, metadata=config or None)
    network.fuse_lora(lora_scale=weight)
    network.unload_lora()


def save_network(network: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """The diffusers folder format, from a gathered state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    network.save_config(folder)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def save_published(state: Mapping[str, Tensor], path: Path) -> None:
    """The published layout, for the tools of others: a pickle, or safetensors if `path` ends so."""
    wrapped = {name: tensor.contiguous() for name, tensor in published.wrap(state).items()}
    if path.suffix == ".safetensors":
        save_file(wrapped, path, metadata={"format": "pt"})
    else:
        torch.save({published.MODEL_STATE: wrapped}, path)


def save_adapter(network: Any, state: dict[str, Tensor], folder: Path) -> None:
    """The diffusers LoRA format, from a gathered state dict of the whole network."""
    adapter = get_peft_model_state_dict(network, state_dict=state, adapter_name="default")
    config = {
        k: sorted(v) if isinstance(v, set) else v for k, v in network.peft_config["default"].to_dict().items()
    }
    write_adapter(adapter, config, folder)


def write_adapter(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", ADAPTER_METADATA: json.dumps(config, sort_keys=True)}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / ADAPTER, metadata=metadata)
