"""Compares DiffRhythm with numbers of the original; holds what the comparisons of all kinds share.

The function of a kind takes a folder and returns its cases. A case file is a safetensors file of inputs `in.*` and
the original's outputs `out.*` and activations `act.*`; each output is compared, or named as not covered.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffdpo.errors import DataError
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from tools.parity.diffrhythm_runs import CASES, Load, Tensors, run_sample

PREFIX = "transformer."
"""The prefix of the keys in published checkpoints."""
TOLERANCE = 1e-5
"""The tolerance, relative and absolute, for another fp32 implementation; the order of sums costs up to 1e-6."""


@dataclass(frozen=True)
class Case:
    """One comparison: the worst absolute error and the tolerance of that element; neither if it is not covered."""

    name: str
    error: float = 0.0
    tolerance: float = 0.0
    is_covered: bool = True

    @property
    def is_within_tolerance(self) -> bool:
        return not self.is_covered or self.error <= self.tolerance  # a NaN does not pass


def compare(name: str, values: Tensor, golden: Tensor, tolerance: float = TOLERANCE) -> Case:
    """The case of two tensors, compared as in torch.allclose: the element that uses most of its tolerance."""
    if values.shape != golden.shape:
        return Case(f"{name}: shape {list(values.shape)} instead of {list(golden.shape)}", float("inf"))
    errors, tolerances = (values - golden).abs().flatten(), tolerance * (1 + golden.abs().flatten())
    worst = (errors / tolerances).argmax()
    return Case(name, errors[worst].item(), tolerances[worst].item())


def compare_keys(name: str, values: Mapping[str, Any], golden: Mapping[str, Any]) -> Case:
    """The case of two mappings; the error is the number of keys that one side lacks or has in another shape."""
    shapes = [{key: list(getattr(v, "shape", v)) for key, v in side.items()} for side in (values, golden)]
    differ = sorted(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))
    return Case(f"{name} keys and shapes" + (f", first {differ[0]}" if differ else ""), float(len(differ)))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; DataError if it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; DataError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors: {error}") from error


def diffrhythm(folder: Path) -> list[Case]:
    """The cases of one configuration (config.json, state_dict, case files), or of several and of listings."""
    single = (folder / "config.json").is_file()
    networks = [folder] if single else sorted(path.parent for path in folder.glob("*/config.json"))
    listings = sorted(folder.glob("*_state_dict.json"))
    if not networks and not listings:
        raise DataError(f"{folder}: holds no config.json, */config.json or *_state_dict.json")
    cases = [case for path in networks for case in check_network(path)]
    cases += [case for path in listings for case in check_listing(path)]
    read_paths = {folder, *networks, *listings} | {folder / "config.json", folder / "README.md"}
    unread_paths = [] if single else sorted(path for path in folder.iterdir() if path not in read_paths)
    return cases + [Case(path.name, is_covered=False) for path in unread_paths]


CONFIG_NAMES = {
    "dim": "dim",
    "depth": "depth",
    "ff_mult": "ff_mult",
    "mel_dim": "latent_channels",
    "text_num_embeds": "text_num_embeds",
    "text_dim": "text_dim",
    "conv_layers": "conv_layers",
    "max_frames": "max_frames",
}
UNUSED_ARGUMENTS = {"heads", "dim_head", "dropout", "long_skip_connection"}
"""Arguments without effect on the original: `heads` is always LlamaConfig's 32, the long skip always off."""


def network_config(published: Mapping[str, Any], heads: int = 32) -> dict[str, Any] | None:
    """The configuration of this project for the original's arguments; None if an argument is of another model."""
    if not published.keys() <= CONFIG_NAMES.keys() | UNUSED_ARGUMENTS or "dim" not in published:
        return None
    values = {
        name: published[original_name]
        for original_name, name in CONFIG_NAMES.items()
        if original_name in published
    }
    return values | {"num_attention_heads": heads, "duration_embedding": published.get("max_frames") == 6144}


def build_network(location: Path, config: Mapping[str, Any]) -> DiffRhythmTransformer:
    try:
        return DiffRhythmTransformer(**config)
    except (TypeError, ValueError) as error:
        raise DataError(f"{location}: no network can be built from its config: {error}") from error


def check_listing(path: Path) -> list[Case]:
    """The cases of a published network at full size: keys, shapes and number of parameters."""
    content = read_json(path)
    if missing_keys := {"config", "num_params", "state_dict"} - content.keys():
        raise DataError(f"{path}: lacks {', '.join(sorted(missing_keys))}")
    config = network_config(content["config"])
    if config is None:
        return [Case(path.name, is_covered=False)]
    with torch.device("meta"):
        network = build_network(path, config)
    values = {PREFIX + key: value for key, value in network.state_dict().items()}
    surplus = abs(sum(p.numel() for p in network.parameters()) - content["num_params"])
    return [
        compare_keys(path.name, values, content["state_dict"]),
        Case(f"{path.name} number of parameters", float(surplus)),
    ]


def check_network(folder: Path) -> list[Case]:
    """The cases of every case file of one configuration."""
    published = read_json(folder / "config.json")
    heads = published.get("effective_num_attention_heads", 32)
    config = network_config(published.get("dit_kwargs", {}), heads)
    if config is None:
        return [Case(folder.name, is_covered=False)]
    weights = {k.removeprefix(PREFIX): v for k, v in read_tensors(folder / "state_dict.safetensors").items()}

    def load(causal: bool) -> DiffRhythmTransformer:
        network = build_network(folder, {**config, "causal": causal})
        network.load_state_dict(weights)
        return network

    cases = [compare_keys(folder.name, build_network(folder, config).state_dict(), weights)]
    if not cases[0].is_within_tolerance:
        return cases
    for path in sorted(folder.glob("*.safetensors")):
        name = f"{folder.name}/{path.stem}"
        run = run_sample if path.stem.startswith("sample_") else CASES.get(path.stem)
        if run is not None:
            cases += check_case(name, read_tensors(path), run, load)
        elif path.stem != "state_dict":
            cases.append(Case(name, is_covered=False))
    return cases


def check_case(name: str, golden: Tensors, run: Callable[[Load, Tensors], Tensors], load: Load) -> list[Case]:
    """The case of every output in a golden file, covered or not.

    The tolerance of an activation is that of its largest element: a small element is the rounded difference of
    large ones, and processors round differently (2.5e-6 on AVX2, 2e-5 on AVX-512). Outputs have no such allowance.
    """
    try:
        values = run(load, golden)
    except KeyError as error:
        raise DataError(f"{name}: lacks the tensor {error}") from error
    keys = [key for key in sorted(golden) if key.startswith(("out.", "act."))]

    def tolerance(key: str) -> float:
        largest = golden[key].abs().max().item() if key.startswith("act.") else 1.0
        return TOLERANCE * max(1.0, largest)

    cases = [
        compare(f"{name} {key}", values[key], golden[key], tolerance(key)) for key in keys if key in values
    ]
    return cases + [Case(f"{name} {key}", is_covered=False) for key in keys if key not in values]
