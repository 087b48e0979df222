"""Measures time and memory of Audiobox-Aesthetics with windows in batches, one at a time and all at once. JSON out.

    python tools/bench_audiobox.py [--seconds 30 240] [--batch 4] [--repeats 3] [--tiny]

All at once is the published way. The weights are random, of full size and the same for all. Each measurement has a
process of its own, because freed memory does not always go back to the system. Time is the median of `--repeats`
after a warm-up with one window. Memory is the peak of the GPU if there is one, else of the process (Linux), and the
part of the peak beyond weights and libraries.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from tools.bench.measure import own_peak_mib, run_in_process


def measure_batch(seconds: float, batch: int, repeats: int, tiny: bool) -> dict[str, float]:
    """Time and memory of scoring one random song of so many seconds with so many windows a forward pass."""
    import torch

    from diffdpo.encoders.audiobox import (
        AUDIOBOX_WINDOW,
        AudioboxNetwork,
        HeadConfig,
        cut_windows,
        rate_windows,
        song_score,
    )
    from diffdpo.encoders.wavlm import WAVLM_SAMPLE_RATE, WavLMConfig

    torch.manual_seed(0)
    heads = HeadConfig(
        layers=5, layer_norm=True, dropout=False, normalise=True, mean=(5.0,) * 4, std=(1.0,) * 4
    )
    small = WavLMConfig(
        conv_layers=((32, 10, 5), *4 * ((32, 3, 2),), *2 * ((32, 2, 2),)), layers=2, dim=64, heads=4
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AudioboxNetwork(small if tiny else WavLMConfig(), heads).eval().requires_grad_(False).to(device)
    song = 0.1 * torch.randn(round(seconds * WAVLM_SAMPLE_RATE))
    windows = cut_windows(song)

    def score() -> torch.Tensor:
        return song_score(rate_windows(network, windows, batch), windows)

    on_gpu = device == "cuda"
    start_mib = torch.cuda.memory_allocated() / 2**20 if on_gpu else own_peak_mib()
    rate_windows(network, cut_windows(song[:AUDIOBOX_WINDOW]), 1)
    times = []
    for _ in range(repeats):
        t_start = time.perf_counter()
        scores = score()
        times.append(time.perf_counter() - t_start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else own_peak_mib()
    return {
        "seconds_median": sorted(times)[repeats // 2],
        "seconds_min": min(times),
        "peak_mib": peak,
        "beyond_weights_mib": peak - start_mib,
        "windows": len(windows.lengths),
        "sum_of_scores": float(scores.sum()),
    }


def in_a_process(seconds: float, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """The result of `measure_batch` in a process of its own."""
    job = {"seconds": seconds, "batch": batch, "repeats": args.repeats, "tiny": args.tiny}
    return run_in_process(__file__, "--job", json.dumps(job))


def compare_batches(seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """All batch sizes at one length. A ratio is that of `batched` to another size, below 1 where `batched` wins."""
    sizes = {"one_at_a_time": 1, "batched": args.batch, "all_at_once": 1_000_000}
    results = {name: in_a_process(seconds, batch, args) for name, batch in sizes.items()}
    batch_result = results["batched"]
    ratios = {
        f"batched_to_{name}": {
            "time": batch_result["seconds_median"] / result["seconds_median"],
            "peak_memory": batch_result["peak_mib"] / result["peak_mib"],
            "memory_beyond_weights": batch_result["beyond_weights_mib"]
            / max(result["beyond_weights_mib"], 1.0),
            "score_difference": abs(batch_result["sum_of_scores"] - result["sum_of_scores"]),
        }
        for name, result in results.items()
        if name != "batched"
    }
    return {"audio_seconds": seconds, **results, "ratios": ratios}


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
        print(json.dumps(measure_batch(**json.loads(args.job))))
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
    print(
        json.dumps(
            {**machine, **settings, "results": [compare_batches(s, args) for s in args.seconds]}, indent=1
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
