"""Audiobox-Aesthetics: windows in batches against one at a time and all at once (as published), JSON out.

    python tools/bench_audiobox.py [--seconds 30 240] [--batch 4] [--repeats 3] [--tiny]

Full-size random weights, the same for all. Each measurement is a process of its own, because memory that was
freed does not always go back; time is the median of `--repeats` after a warm-up with one window. Memory is the
peak of the GPU if there is one, else of the process (Linux), and what of it is beyond weights and libraries.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed


def peak_mib() -> float:
    """Of this process so far: VmHWM, which starts anew with the program, unlike getrusage."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("error: /proc/self/status tells no peak; memory is measured on Linux only")


def measure(seconds: float, batch: int, repeats: int, tiny: bool) -> dict[str, float]:
    """One way, one length, in this process."""
    import torch

    from diffdpo.encoders.audiobox import (
        WINDOW,
        AudioboxNetwork,
        HeadConfig,
        cut_windows,
        rate_windows,
        song_score,
    )
    from diffdpo.encoders.wavlm import SAMPLE_RATE, WavLMConfig

    torch.manual_seed(0)
    heads = HeadConfig(
        layers=5, layer_norm=True, dropout=False, normalise=True, mean=(5.0,) * 4, std=(1.0,) * 4
    )
    small = WavLMConfig(
        conv_layers=((32, 10, 5), *4 * ((32, 3, 2),), *2 * ((32, 2, 2),)), layers=2, dim=64, heads=4
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AudioboxNetwork(small if tiny else WavLMConfig(), heads).eval().requires_grad_(False).to(device)
    song = 0.1 * torch.randn(round(seconds * SAMPLE_RATE))
    windows = cut_windows(song)

    def score() -> torch.Tensor:
        return song_score(rate_windows(network, windows, batch), windows)

    on_gpu = device == "cuda"
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else peak_mib()
    rate_windows(network, cut_windows(song[:WINDOW]), 1)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        scores = score()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_mib()
    return {
        "seconds_median": sorted(times)[repeats // 2],
        "seconds_min": min(times),
        "peak_mib": peak,
        "beyond_weights_mib": peak - before,
        "windows": len(windows.lengths),
        "sum_of_scores": float(scores.sum()),
    }


def in_a_process(seconds: float, batch: int, args: argparse.Namespace) -> dict[str, float]:
    job = {"seconds": seconds, "batch": batch, "repeats": args.repeats, "tiny": args.tiny}
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {job} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def compare(seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """All ways at one length; ratios are those of batches to the other, below 1 where batches win."""
    sizes = {"one_at_a_time": 1, "batched": args.batch, "all_at_once": 1_000_000}
    found = {name: in_a_process(seconds, batch, args) for name, batch in sizes.items()}
    mine = found["batched"]
    ratios = {
        f"batched_to_{name}": {
            "time": mine["seconds_median"] / other["seconds_median"],
            "peak_memory": mine["peak_mib"] / other["peak_mib"],
            "memory_beyond_weights": mine["beyond_weights_mib"] / max(other["beyond_weights_mib"], 1.0),
            "score_difference": abs(mine["sum_of_scores"] - other["sum_of_scores"]),
        }
        for name, other in found.items()
        if name != "batched"
    }
    return {"audio_seconds": seconds, **found, "ratios": ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[30.0, 240.0], help="lengths of the songs"
    )
    parser.add_argument("--batch", type=int, default=4, help="windows in a forward pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small network, to see that the bench works")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(**json.loads(args.job))))
        return 0
    import torch

    machine = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    settings = {"batch": args.batch, "repeats": args.repeats, "tiny": args.tiny}
    print(json.dumps({**machine, **settings, "results": [compare(s, args) for s in args.seconds]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
