"""Measures time and memory of SongEval in this project and as published, with the same weights. JSON out.

    python tools/bench_songeval.py [--seconds 30 240] [--repeats 3] [--no-rounded]

The weights are random and of full size. `published` sends a full song through every convolution at once, computes
twelve blocks and keeps all weights of attention in memory. `ours` is `diffdpo.scorers.songeval`, and `ours_rounded`
is the same with convolutions in bfloat16. Each measurement has a process of its own, and the sides take turns.
`seconds` is the median over the repeats, without loading; `peak_mb` is the peak memory of the process (on a GPU: of
what was allocated there), networks included.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.encoders import muq, songeval
from diffdpo.scorers.songeval import HEAD_FILE
from tools.bench.measure import own_peak_mib, run_in_process

SIZES = {
    "full": (muq.MuQConfig(), 4096),
    "tiny": (muq.MuQConfig(dim=64, hidden=128, heads=4, conv_dim=16), 128),
}
"""By name, the configuration of the encoder and the width of the hidden layer of the head."""
SIDES = ("published", "ours", "ours_rounded")
HEAD_NAME = Path(HEAD_FILE).name


def make_weights(size: str, folder: Path) -> None:
    """Write random networks as published files, with random statistics in the normalisations."""
    torch.manual_seed(0)
    config, hidden = SIZES[size]
    encoder = muq.MuQ(config)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_var is not None:
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    head = songeval.Head(config.dim, hidden, 4, 5)
    for layer in head.attn:
        nn.init.normal_(layer.get_parameter("in_proj_weight"), std=config.dim**-0.5)
        nn.init.zeros_(layer.get_parameter("in_proj_bias"))
    save_file(
        {muq.MUQ_PREFIX + name: tensor for name, tensor in encoder.state_dict().items()},
        folder / muq.MUQ_FILE,
    )
    (folder / "head").mkdir()
    save_file(head.state_dict(), folder / "head" / HEAD_NAME)


def sound(seconds: float) -> Tensor:
    """Notes with overtones in some noise, the same every time."""
    random = torch.Generator().manual_seed(0)
    time_s = torch.arange(int(seconds * muq.MUQ_SAMPLE_RATE)) / muq.MUQ_SAMPLE_RATE
    pitches = 110 * 2 ** (torch.randint(0, 36, (int(2 * seconds) + 1,), generator=random) / 12)
    phase = (pitches[(2 * time_s).long()] / muq.MUQ_SAMPLE_RATE).cumsum(0) * 2 * torch.pi
    notes = sum(torch.sin(k * phase) / k for k in range(1, 6))
    return 0.1 * notes + 0.01 * torch.randn(len(time_s), generator=random)


def project_rater(folder: Path, dtype: torch.dtype, device: str) -> Callable[[Tensor], Tensor]:
    encoder = muq.load_muq(folder / muq.MUQ_FILE, songeval.BLOCKS, dtype).to(device)
    network = songeval.SongEvalNetwork(encoder, songeval.load_head(folder / "head" / HEAD_NAME).to(device))
    return lambda wave: network.rate([wave.numpy()])[0]


def published_rater(folder: Path, heads: int, device: str) -> Callable[[Tensor], Tensor]:
    """SongEval in plain steps after the published description; all hidden states are kept in memory."""
    weights = {
        k.removeprefix(muq.MUQ_PREFIX): v.to(device) for k, v in load_file(folder / muq.MUQ_FILE).items()
    }
    judge = load_file(folder / "head" / HEAD_NAME, device=device)
    layers = []
    for i in range(len([name for name in judge if name.endswith("in_proj_bias")])):
        prefix = f"attn.{i}."
        layer = nn.MultiheadAttention(len(judge["ffd.2.bias"]), songeval.HEADS, batch_first=True).to(device)
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in judge.items() if k.startswith(prefix)})
        layers.append(layer)

    @torch.no_grad()
    def rate(wave: Tensor) -> Tensor:
        states = hidden_states(plain_mel(wave.to(device)), weights, heads)
        features = context = linear(linear(states[songeval.BLOCKS], judge, "ffd.0").relu(), judge, "ffd.2")
        for layer in layers:
            context, _ = layer(context, context, context)
        song_vector = torch.cat([context.mean(1), features.max(1).values], dim=-1)
        return (linear(song_vector, judge, "fc").tanh() * 2 + 3)[0]

    return rate


Weights = Mapping[str, Tensor]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def layer_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def batch_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"])


def plain_mel(wave: Tensor) -> Tensor:
    window = torch.hann_window(muq.MEL_WINDOW, device=wave.device)
    spectrum = torch.stft(
        wave[None], muq.MEL_WINDOW, muq.MEL_HOP, window=window, center=True, return_complex=True
    )
    power = muq.filterbank().to(wave.device).T @ spectrum.abs() ** 2
    config = muq.MuQConfig()
    return (10 * power.clamp(min=1e-10).log10()[..., :-1] - config.mean) / config.std


def hidden_states(mel: Tensor, w: Weights, heads: int) -> list[Tensor]:
    x = mel[:, None]
    for name in ("conv.conv.0", "conv.conv.1"):

        def convolve(x: Tensor, i: int, stride: int, name: str = name) -> Tensor:
            x = F.conv2d(x, w[f"{name}.conv{i}.weight"], w[f"{name}.conv{i}.bias"], stride, 1)
            return batch_norm(x, w, f"{name}.bn{i}")

        x = (convolve(convolve(x, 1, 2).relu(), 2, 1) + convolve(x, 3, 2)).relu()
    states = [linear(x.permute(0, 3, 1, 2).flatten(2), w, "conv.linear")]
    angles = (
        torch.arange(states[0].shape[1], device=mel.device)[:, None] * w["conformer.embed_positions.inv_freq"]
    )
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    for i in range(sum(name.endswith("linear_q.bias") for name in w)):
        states.append(conformer_block(states[-1], w, f"conformer.layers.{i}", heads, angles))
    return [*states[:-1], layer_norm(states[-1], w, "conformer.layer_norm")]


def conformer_block(x: Tensor, w: Weights, name: str, heads: int, angles: Tensor) -> Tensor:
    def feed_forward(x: Tensor, layer: str) -> Tensor:
        h = layer_norm(x, w, f"{name}.{layer}_layer_norm")
        h = F.silu(linear(h, w, f"{name}.{layer}.intermediate_dense"))
        return 0.5 * linear(h, w, f"{name}.{layer}.output_dense")

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    x = x + feed_forward(x, "ffn1")
    h = layer_norm(x, w, f"{name}.self_attn_layer_norm")
    by_head = h.unflatten(-1, (heads, -1))
    first, second = by_head.chunk(2, dim=-1)
    rotary_heads = (by_head * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()).flatten(2)
    q, k = (split(linear(rotary_heads, w, f"{name}.self_attn.linear_{letter}")) for letter in "qk")
    v = split(linear(h, w, f"{name}.self_attn.linear_v"))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    x = x + linear((weights @ v).transpose(1, 2).flatten(2), w, f"{name}.self_attn.linear_out")
    h = layer_norm(x, w, f"{name}.conv_module.layer_norm").transpose(1, 2)
    h = F.glu(F.conv1d(h, w[f"{name}.conv_module.pointwise_conv1.weight"]), dim=1)
    kernel = w[f"{name}.conv_module.depthwise_conv.weight"]
    h = F.conv1d(h, kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
    h = F.silu(batch_norm(h, w, f"{name}.conv_module.batch_norm"))
    x = x + F.conv1d(h, w[f"{name}.conv_module.pointwise_conv2.weight"]).transpose(1, 2)
    return layer_norm(x + feed_forward(x, "ffn2"), w, f"{name}.final_layer_norm")


def measure_side(side: str, size: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Time, memory and scores of one side on one song, after a call with two seconds of sound to warm up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if side == "published":
        rate = published_rater(folder, SIZES[size][0].heads, device)
    else:
        rate = project_rater(folder, torch.float32 if side == "ours" else torch.bfloat16, device)
    rate(sound(2.0))
    wave = sound(seconds)
    t_start = time.perf_counter()
    scores = rate(wave).tolist()  # waits for the GPU
    elapsed_s = time.perf_counter() - t_start
    return {"seconds": elapsed_s, "peak_mb": peak_mb(), "scores": scores}


def peak_mb() -> float:
    """Peak memory so far in MB: allocated on the GPU if there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return own_peak_mib() * 2**20 / 1e6


def compare_sides(
    size: str, folder: Path, seconds: float, repeats: int, sides: tuple[str, ...]
) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, results in runs.items():
            options = ["--folder", folder, "--seconds", seconds, *(["--tiny"] if size == "tiny" else [])]
            results.append(run_in_process(__file__, "--measure", side, *options))
    result: dict[str, Any] = {"audio_seconds": seconds}
    for side, results in runs.items():
        result[side] = {
            "seconds": round(statistics.median(r["seconds"] for r in results), 3),
            "all_seconds": [round(r["seconds"], 3) for r in results],
            "peak_mb": round(max(r["peak_mb"] for r in results)),
            "scores": results[0]["scores"],
        }
    base = result["published"]
    for side in sides[1:]:
        row = result[side]
        row["time_ratio"] = round(row["seconds"] / base["seconds"], 3)
        row["memory_ratio"] = round(row["peak_mb"] / base["peak_mb"], 3)
        row["max_score_difference"] = max(
            abs(a - b) for a, b in zip(row["scores"], base["scores"], strict=True)
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 240.0], help="of audio")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the tool")
    parser.add_argument(
        "--rounded",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="bfloat16 too; slow on some CPUs",
    )
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = "tiny" if args.tiny else "full"
    if args.measure:
        print(json.dumps(measure_side(args.measure, size, args.folder, args.seconds[0])))
        return
    with tempfile.TemporaryDirectory() as name:
        make_weights(size, Path(name))
        sides = SIDES if args.rounded else SIDES[:2]
        results = [compare_sides(size, Path(name), seconds, args.repeats, sides) for seconds in args.seconds]
    device_name = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        json.dumps(
            {"size": size, "device": device_name, "torch": torch.__version__, "results": results}, indent=2
        )
    )


if __name__ == "__main__":
    main()
