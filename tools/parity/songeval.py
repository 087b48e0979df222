"""Compares MuQ and SongEval with numbers of the originals.

`<name>.safetensors` holds weights, `<name>_io.safetensors` inputs and the original's outputs.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdpo.encoders import muq as encoder
from diffdpo.encoders import songeval as rater
from diffdpo.errors import DataError
from tools.parity.diffrhythm import TOLERANCE, Case, compare, compare_keys, read_json, read_tensors
from tools.parity.diffrhythm_runs import Tensors

IO = "_io"
E2E_HEAD = "tiny_e2e_head.safetensors"
ILL_CONDITIONED = ("tiny_head", {"attn": 2e-3, "pooled": 1e-4, "logits": 1e-4, "scores": 3e-5})
"""The beginning of the names of some heads, and the tolerances of their stages: logits of their random attention
are in the hundreds, and softmax multiplies rounding. The original in fp32 differs as much from itself in fp64."""
SPECTRUM_TOLERANCE = 1e-6
"""The tolerance of amplitudes, relative to the loudest of their frame: an FFT in fp32 leaves noise at about
-130 dB, which differs between kinds of CPU and is arbitrary in decibels."""
AUDIBLE_DB = 90.0
"""Clips of a smaller dynamic range are compared from their samples; others from the golden spectrogram."""


def muq(folder: Path) -> list[Case]:
    """The cases of the mel front end, every hidden state, and the scores of a tiny head."""
    published = read_json(folder / "config.json").get("muq_config")
    if not isinstance(published, dict):
        raise DataError(f"{folder / 'config.json'}: lacks muq_config")
    cases, read_names = [], {"README.md", "config.json"}
    for path in sorted(folder.glob(f"*{IO}.safetensors")):
        weights = path.with_name(path.name.replace(IO, ""))
        network = encoder.load_muq(weights)
        cases += [
            check_sizes(weights.stem, network.config, published),
            *check_muq(path.stem, network, read_tensors(path), folder),
            *check_depths(weights, network.config.depth, read_tensors(path)),
        ]
        read_names |= {path.name, weights.name}
        if (listing_path := folder / f"state_dict_keys_{path.stem.split('_')[0]}.json").is_file():
            cases.append(check_parameters(listing_path, network))
            read_names.add(listing_path.name)
    if not cases:
        raise DataError(f"{folder}: holds no *{IO}.safetensors")
    return cases + uncovered_files(folder, read_names)


def check_sizes(name: str, config: encoder.MuQConfig, published: Mapping[str, Any]) -> Case:
    """The case of the configuration that is read from shapes and known statistics, against the published one."""
    layers, stat = published["w2v2_config"], published["stat"]
    published_config = encoder.MuQConfig(
        dim=published["encoder_dim"],
        depth=published["encoder_depth"],
        heads=layers["num_attention_heads"],
        hidden=layers["intermediate_size"],
        kernel_size=layers["conv_depthwise_kernel_size"],
        conv_dim=published["conv_dim"],
        mean=stat["melspec_2048_mean"],
        std=stat["melspec_2048_std"],
    )
    return Case(f"{name} sizes", 0.0 if config == published_config else math.inf)


@torch.no_grad()
def check_muq(name: str, network: encoder.MuQ, golden: Tensors, folder: Path) -> list[Case]:
    """The case of each stage; states follow from the golden spectrogram if there is one, else from samples."""
    waves = golden["wav"]
    mel = torch.stack([encoder.log_mel(wave) for wave in waves])
    spectra = golden.get("mel_db", mel)
    results = {f"hidden_{i}": h for i, h in enumerate(network.states(spectra))}
    results |= {"conv_out": results["hidden_0"], "mel_filterbank": encoder.filterbank()}
    for head in (folder / E2E_HEAD, folder.parent / "songeval" / E2E_HEAD):
        if head.is_file() and "hidden_6" in results:
            results["songeval_scores_from_hidden6"] = rater.load_head(head)(results["hidden_6"])
    cases = []
    for key in sorted(golden.keys() - {"wav", "mel_db"}):
        case = Case(f"{name} {key}", is_covered=False)
        cases.append(compare(case.name, results[key], golden[key]) if key in results else case)
    if "mel_db" in golden:
        cases += check_front_end(name, network, mel, golden)
    return cases


def check_front_end(name: str, network: encoder.MuQ, mel: Tensor, golden: Tensors) -> list[Case]:
    """The cases of the spectrogram, and of the states computed from it for clips within AUDIBLE_DB."""
    spectra = golden["mel_db"]
    peaks = amplitudes(spectra).amax(1, keepdim=True)
    amplitudes_of_mel, golden_amplitudes = amplitudes(mel) / peaks, amplitudes(spectra) / peaks
    cases = [compare(f"{name} mel_db, amplitudes", amplitudes_of_mel, golden_amplitudes, SPECTRUM_TOLERANCE)]
    for i, spectrum in enumerate(spectra):
        if (spectrum.amax(0) - spectrum.amin(0)).max() < AUDIBLE_DB:
            cases.append(compare(f"{name} mel_db of wav {i}", mel[i], spectrum))
            cases += [
                compare(f"{name} hidden_{depth} of wav {i}", h[0], golden[f"hidden_{depth}"][i])
                for depth, h in enumerate(network.states(mel[i : i + 1]))
                if f"hidden_{depth}" in golden
            ]
    return cases


@torch.no_grad()
def check_depths(weights: Path, depth: int, golden: Tensors) -> list[Case]:
    """The cases of networks of the first blocks alone, against the hidden states after these blocks."""
    mel = golden["mel_db"] if "mel_db" in golden else torch.stack([encoder.log_mel(w) for w in golden["wav"]])
    return [
        compare(
            f"{weights.stem}, {blocks} blocks only",
            encoder.load_muq(weights, blocks)(mel)[0],
            golden[f"hidden_{blocks}"],
        )
        for blocks in range(1, depth)
        if f"hidden_{blocks}" in golden
    ]


def check_parameters(path: Path, network: nn.Module) -> Case:
    """The case of the keys and shapes of the original's parameters, without the unused ones."""
    shapes = {key.removeprefix(encoder.MUQ_PREFIX): shape for key, shape in json.loads(path.read_text())}
    used_shapes = {
        key: shape for key, shape in shapes.items() if not key.startswith(encoder.MUQ_TRAINING_PREFIXES)
    }
    return compare_keys(path.name, network.state_dict(), used_shapes)


def amplitudes(decibels: Tensor) -> Tensor:
    """Amplitudes, in fp64, of levels in decibels."""
    return 10 ** (decibels.double() / 20)


def songeval(folder: Path) -> list[Case]:
    """The cases of heads of any size; a head without a weight file is a `hashed_head` of a size in config.json."""
    config = read_json(folder / "config.json")
    cases, read_names = [], {"README.md", "config.json", E2E_HEAD}  # that head belongs to MuQ's numbers
    for path in sorted(folder.glob(f"*{IO}.safetensors")):
        weights = path.with_name(path.name.replace(IO, ""))
        read_names |= {path.name, weights.name}
        size = next((config[name] for name in config if path.name.startswith(f"{name}_")), None)
        if weights.is_file():
            head = rater.load_head(weights)
        elif isinstance(size, dict):
            head = hashed_head(size)
        else:
            raise DataError(f"{path}: neither {weights.name} beside it nor its size in config.json")
        cases += check_head(path.stem, head, read_tensors(path))
    if not cases:
        raise DataError(f"{folder}: holds no *{IO}.safetensors")
    return cases + uncovered_files(folder, read_names)


@torch.no_grad()
def check_head(name: str, head: rater.Head, golden: Tensors) -> list[Case]:
    """The cases of a head's ratings and of every stage before them."""
    start, tolerances = ILL_CONDITIONED
    cases = []
    for group in sorted({key.rpartition(".")[0] for key in golden}):
        golden_stages = {key: tensor for key, tensor in golden.items() if key.rpartition(".")[0] == group}
        x = golden_stages.pop(f"{group}.x".lstrip("."), None)
        results = stage_outputs(
            head, hashed_tensor("input", (1, 50, head.fc.in_features // 2), 1.0) if x is None else x
        )
        for key, tensor in sorted(golden_stages.items()):
            stage = key.rpartition(".")[2]
            if stage not in results:
                cases.append(Case(f"{name} {key}", is_covered=False))
                continue
            tolerance = tolerances.get(stage, TOLERANCE) if name.startswith(start) else TOLERANCE
            scale = 1.0 if stage in ("logits", "scores") else max(1.0, tensor.abs().max().item())
            cases.append(compare(f"{name} {key}", results[stage] / scale, tensor / scale, tolerance))
    return cases


def stage_outputs(head: rater.Head, x: Tensor) -> dict[str, Tensor]:
    """The output of every stage of a head's forward pass."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        head.ffd.register_forward_hook(lambda _module, _args, out: outputs.update(ffd=out)),
        head.attn[-1].register_forward_hook(lambda _module, _args, out: outputs.update(attn=out)),
        head.fc.register_forward_hook(lambda _module, args, out: outputs.update(pooled=args[0], logits=out)),
    ]
    scores = head(x)
    for hook in hooks:
        hook.remove()
    return {**outputs, "scores": scores}


def hashed_head(size: Mapping[str, int]) -> rater.Head:
    """A head whose weights are `hashed_tensor` of the names of its parameters."""
    layers = size["attn_layer_num"]
    head = rater.Head(size["in_features"], size["ffd_hidden_size"], layers, size["num_classes"])

    def scale(name: str, parameter: Tensor) -> float:
        return 0.01 if parameter.ndim == 1 else 0.03 if "attn" in name else 0.05

    head.load_state_dict(
        {name: hashed_tensor(name, p.shape, scale(name, p)) for name, p in head.state_dict().items()}
    )
    return head


def hashed_tensor(name: str, shape: Sequence[int], scale: float) -> Tensor:
    """A tensor of a linear congruential sequence in [-scale, scale) that starts at the hash of a name."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    states = (torch.arange(math.prod(shape)) * 1103515245 + start) % 2**31
    return ((2 * (states.double() / 2**31) - 1) * scale).float().reshape(*shape)


def uncovered_files(folder: Path, read_names: set[str]) -> list[Case]:
    """A case that is not covered for each file of a folder outside `read_names`."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in read_names)
    return [Case(name, is_covered=False) for name in names]
