"""Compare the project with numbers measured on the original implementations.

One function a kind takes a folder and returns its cases. A case file is a safetensors of `in.*` and of what
the original made of it, `out.*` and `act.*`; every one of these is compared, or named as not covered.
"""

import itertools
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffdpo import flow
from diffdpo.errors import DataError
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.layers import angles
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.sampling.conditions import ConditionBatch
from diffdpo.sampling.guidance import CFG, Guidance
from diffdpo.sampling.request import InpaintContext
from diffdpo.sampling.solver import SOLVERS
from diffdpo.sampling.trajectory import State, solve
from diffdpo.sampling.velocity import guided_velocity, initial_state, network_velocity

Tensors = Mapping[str, Tensor]
PREFIX = "transformer."
"""Of the published checkpoints' keys."""
TOLERANCE = 1e-5
"""Of another fp32 implementation, relative and absolute; sums in another order cost up to 1e-6."""


@dataclass(frozen=True)
class Case:
    """One comparison: the worst absolute error and what is allowed there, or nothing if it is not covered."""

    name: str
    error: float = 0.0
    tolerance: float = 0.0
    covered: bool = True

    @property
    def passed(self) -> bool:
        return not self.covered or self.error <= self.tolerance  # a NaN does not pass


def compare(name: str, ours: Tensor, golden: Tensor, tolerance: float = TOLERANCE) -> Case:
    """Element by element, as torch.allclose; it tells of the element that uses up most of its tolerance."""
    if ours.shape != golden.shape:
        return Case(f"{name}: shape {list(ours.shape)} instead of {list(golden.shape)}", float("inf"))
    errors, allowed = (ours - golden).abs().flatten(), tolerance * (1 + golden.abs().flatten())
    worst = (errors / allowed).argmax()
    return Case(name, errors[worst].item(), allowed[worst].item())


def compare_keys(name: str, ours: Mapping[str, Any], golden: Mapping[str, Any]) -> Case:
    """Counts the keys that one side lacks or has in another shape."""
    shapes = [{key: list(getattr(v, "shape", v)) for key, v in side.items()} for side in (ours, golden)]
    differ = sorted(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))
    return Case(f"{name} keys and shapes" + (f", first {differ[0]}" if differ else ""), float(len(differ)))


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors: {error}") from error


def diffrhythm(folder: Path) -> list[Case]:
    """A configuration (config.json, state_dict, case files), or several of them and full-size listings."""
    single = (folder / "config.json").is_file()
    networks = [folder] if single else sorted(path.parent for path in folder.glob("*/config.json"))
    listings = sorted(folder.glob("*_state_dict.json"))
    if not networks and not listings:
        raise DataError(f"{folder}: holds no config.json, */config.json or *_state_dict.json")
    cases = [case for path in networks for case in check_network(path)]
    cases += [case for path in listings for case in check_listing(path)]
    known = {folder, *networks, *listings} | {folder / "config.json", folder / "README.md"}
    others = [] if single else sorted(path for path in folder.iterdir() if path not in known)
    return cases + [Case(path.name, covered=False) for path in others]


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
UNUSED = {"heads", "dim_head", "dropout", "long_skip_connection"}
"""Arguments without effect on the original: `heads` is always LlamaConfig's 32, the long skip always off."""


def network_config(published: Mapping[str, Any], heads: int = 32) -> dict[str, Any] | None:
    """Our config for the original's arguments; None if one of them belongs to another model."""
    if not published.keys() <= CONFIG_NAMES.keys() | UNUSED or "dim" not in published:
        return None
    ours = {name: published[theirs] for theirs, name in CONFIG_NAMES.items() if theirs in published}
    return ours | {"num_attention_heads": heads, "duration_embedding": published.get("max_frames") == 6144}


def build(where: Path, config: Mapping[str, Any]) -> DiffRhythmTransformer:
    try:
        return DiffRhythmTransformer(**config)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: no network can be built from its config: {error}") from error


def check_listing(path: Path) -> list[Case]:
    """The published network at full size: the same keys, shapes and number of parameters."""
    listing = read_json(path)
    if missing := {"config", "num_params", "state_dict"} - listing.keys():
        raise DataError(f"{path}: lacks {', '.join(sorted(missing))}")
    config = network_config(listing["config"])
    if config is None:
        return [Case(path.name, covered=False)]
    with torch.device("meta"):
        network = build(path, config)
    ours = {PREFIX + key: value for key, value in network.state_dict().items()}
    surplus = abs(sum(p.numel() for p in network.parameters()) - listing["num_params"])
    return [
        compare_keys(path.name, ours, listing["state_dict"]),
        Case(f"{path.name} number of parameters", float(surplus)),
    ]


def check_network(folder: Path) -> list[Case]:
    """Every case file of one configuration."""
    published = read_json(folder / "config.json")
    heads = published.get("effective_num_attention_heads", 32)
    config = network_config(published.get("dit_kwargs", {}), heads)
    if config is None:
        return [Case(folder.name, covered=False)]
    weights = {k.removeprefix(PREFIX): v for k, v in read_tensors(folder / "state_dict.safetensors").items()}

    def load(causal: bool) -> DiffRhythmTransformer:
        network = build(folder, {**config, "causal": causal})
        network.load_state_dict(weights)
        return network

    cases = [compare_keys(folder.name, build(folder, config).state_dict(), weights)]
    if not cases[0].passed:
        return cases
    for path in sorted(folder.glob("*.safetensors")):
        name = f"{folder.name}/{path.stem}"
        run = run_sample if path.stem.startswith("sample_") else CASES.get(path.stem)
        if run is not None:
            cases += check_case(name, read_tensors(path), run, load)
        elif path.stem != "state_dict":
            cases.append(Case(name, covered=False))
    return cases


Load = Callable[[bool], DiffRhythmTransformer]
"""The network of a configuration, causal or not."""


def check_case(name: str, golden: Tensors, run: Callable[[Load, Tensors], Tensors], load: Load) -> list[Case]:
    """Every output that the golden file holds, whether or not we have it.

    Activations may differ by the tolerance of their largest element: a small one is the rounded difference of
    large ones, and processors round differently (2.5e-6 on AVX2, 2e-5 on AVX-512). Outputs get no such grace.
    """
    try:
        ours = run(load, golden)
    except KeyError as error:
        raise DataError(f"{name}: lacks the tensor {error}") from error
    wanted = [key for key in sorted(golden) if key.startswith(("out.", "act."))]

    def allowed(key: str) -> float:
        largest = golden[key].abs().max().item() if key.startswith("act.") else 1.0
        return TOLERANCE * max(1.0, largest)

    known = [compare(f"{name} {key}", ours[key], golden[key], allowed(key)) for key in wanted if key in ours]
    return known + [Case(f"{name} {key}", covered=False) for key in wanted if key not in ours]


def predict(
    network: DiffRhythmTransformer, golden: Tensors, x: Tensor, audio: Tensor, drop: Container[str] = ()
) -> Tensor:
    """The published forward; what is dropped is zero."""

    def kept(name: str, value: Tensor) -> Tensor:
        return torch.zeros_like(value) if name in drop else value

    return network(
        x,
        golden["in.time"],
        text=kept("text", golden["in.text"]),
        style=kept("prompt", golden["in.style_prompt"]),
        audio=kept("audio", audio),
        start_time=golden["in.start_time"],
        duration=golden["in.duration"] if network.config.duration_embedding else None,
    )


@torch.no_grad()
def run_forward(load: Load, golden: Tensors) -> Tensors:
    """The prediction and the output of every module on the way."""
    network = load(False)
    seen: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        name = name.replace("transformer_blocks.", "block").replace("text_fusion_linears.", "text_fusion")
        module.register_forward_hook(lambda _module, _args, out, name=name: seen.update({f"act.{name}": out}))
    x = golden["in.x"]
    turns = angles(torch.arange(x.shape[1]), network.config.dim // network.config.num_attention_heads)
    seen["act.rotary_cos"] = turns.cos().repeat(len(x), 1, 2)
    seen["out.pred"] = predict(network, golden, x, golden["in.cond"])
    return seen


@torch.no_grad()
def run_causal(load: Load, golden: Tensors) -> Tensors:
    """v1.0 checkpoints."""
    return {"out.pred_causal": predict(load(True), golden, golden["in.x"], golden["in.cond"])}


@torch.no_grad()
def run_drops(load: Load, golden: Tensors) -> Tensors:
    """All ways to drop audio, text and prompt."""
    network, names = load(False), ("audio", "text", "prompt")
    ours = {}
    for flags in itertools.product((0, 1), repeat=3):
        drop = {name for name, flag in zip(names, flags, strict=True) if flag}
        key = "_".join(f"drop{name}{flag}" for name, flag in zip(names, flags, strict=True))
        ours[f"out.pred_{key}"] = predict(network, golden, golden["in.x"], golden["in.cond"], drop)
    return ours


def run_train_loss(load: Load, golden: Tensors) -> Tensors:
    """Flow matching, by `diffdpo.flow`: its time is 1 minus the original's, its velocity the negative."""
    song, noise, lens = golden["in.x1"], golden["in.x0"], golden["in.lens"]
    mask = flow.mask_from_frames(lens, song.shape[1])
    x = flow.interpolate(song, noise, 1 - golden["in.time"])
    audio = song.masked_fill(mask[..., None], 0)
    ours: dict[str, Tensor] = {}
    for tag, drop in {"nodrop": (), "droptext": ("text",), "dropall": ("audio", "text", "prompt")}.items():
        network = load(False)
        prediction = predict(network, golden, x, audio, drop)
        errors = flow.masked_error(-prediction, flow.velocity(song, noise), mask)
        loss = (errors * lens).sum() / lens.sum()  # the original's mean: long songs weigh more
        loss.backward()
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        ours |= {
            f"out.pred_{tag}": prediction.detach(),
            f"out.per_elem_sqerr_mean_per_song_{tag}": errors.detach(),
            f"out.loss_{tag}": loss.detach().reshape(1),
            f"out.gradnorm_total_{tag}": torch.nn.utils.get_total_norm(list(found.values())).reshape(1),
            f"out.grad_proj_out_weight_{tag}": found["proj_out.weight"],
        }
    return ours


@torch.no_grad()
def run_sample(load: Load, golden: Tensors) -> Tensors:
    """The sampler itself, as users run it, from given noise and conditions; the original's scale s - 1 is 4."""
    network, noise = load(False), golden["in.y0_noise"]
    count, length, channels = noise.shape
    spec = LatentSpec(channels=channels, frames_per_second=1.0, sample_rate=1, max_frames=length)
    model = DiffRhythm(network=network, spec=spec)
    keep_masks = torch.tensor([[True], [False]]).repeat(1, length)  # the negative branch sees no context
    for start, stop in golden["in.latent_pred_segments"].tolist():
        keep_masks[0, start:stop] = False
    context = InpaintContext(golden["in.cond"][0], keep_masks[0])
    condition = {
        "lyrics": torch.nn.functional.pad(golden["in.text"], (0, 0, 0, 1)),
        "style": torch.cat([golden["in.style_prompt"], golden["in.negative_style_prompt"]]),
        "audio": torch.zeros(2, length, channels),
        "start_time": golden["in.start_time"].expand(2),
    }
    if network.config.duration_embedding:
        condition["duration"] = golden["in.song_duration"].expand(2)
    condition = model.with_context(condition, context.latents.expand(2, -1, -1), keep_masks)
    first = torch.zeros(count, dtype=torch.long)
    frames = torch.full((2,), length)
    conditions = ConditionBatch(condition=condition, frames=frames, cond=first, uncond=first + 1)
    guidance, mask = Guidance(1 + golden["in.cfg_strength"].item(), CFG()), torch.ones(count, length).bool()
    velocity = guided_velocity(network_velocity(model, network, conditions), conditions, guidance, mask)
    times = (1 - golden["t_grid"].double())[:, None].expand(-1, count)
    state = initial_state(torch.arange(count), noise, guidance, cached=False)
    trajectory = [noise]

    def record(step: int, x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
        trajectory.append(x)
        return x, state

    songs, _ = solve(velocity, noise, times, SOLVERS["euler"], state, lambda i: lambda *_: noise, record)
    return {
        "out.trajectory": torch.stack(trajectory),
        "out.latents": torch.stack([context.paste(song) for song in songs]),
    }


CASES: dict[str, Callable[[Load, Tensors], Tensors]] = {
    "case1_forward": run_forward,
    "case1b_legacy_causal": run_causal,
    "case2_padded_dropflags": run_drops,
    "case3_scalar_time": run_forward,
    "case4_train_loss": run_train_loss,
}
