"""Times a preference step and counts its memory, beside the published way, in one run. JSON out.

    python tools/bench_train.py [--size 512x8] [--frames 256 1024] [--rounds 3] [--trainings full-1 …]
    python tools/bench_train.py --growth [--size 256x4]

The published way is Diffusion-DPO's: two full models, winners and losers of all pairs stacked and padded to the
longest, once through the policy and once through the reference, AdamW. Ours is `train_step` as the trainer runs it.
Each round draws lengths log-uniformly and runs all trainings in turn on the same pairs; `pairs_ratio` is the median
over rounds of the published way's processor time over the training's. `flop_bound` is what operations allow
for the songs of the first step, which are padded more or less than those of the rounds (`padded_over_valid`).
Gradients of full trainings are compared with the published way's in a first, untimed step. Memory is the peak of
live tensor bytes of a second one; FLOPs are counted in a third. `share`: FLOPs of the valid frames, without
recomputation, over processor time and the best rate of `torch.mm` on the network's shapes. `--growth` measures the
peak of what is neither weights, gradients, optimiser nor reference, at 1,024 and 4,096 frames.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import torch

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.training.flops import count_flops
from diffdpo.training.live_bytes import LiveBytes, count_gradients
from tools.bench.contestants import LONGEST, PUBLISHED, Contestant, build_ours, build_published, draw_pairs
from tools.bench.measure import round_values
from tools.bench_memory import MIB


def run_first(contestant: Contestant, pairs: PairsInMemory, standard: Contestant | None) -> None:
    """Run the first step and compare its gradients with the standard's: a difference of 1e-4 ends the bench."""

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        contestant.gradients = [p.grad.clone() for p in contestant.parameters if p.grad is not None]

    hook = contestant.optimizer.register_step_pre_hook(keep)
    contestant.run(pairs, 0)
    hook.remove()
    if standard is contestant:
        return
    gradients, contestant.gradients = contestant.gradients, []
    if standard is None or len(gradients) != len(standard.gradients):
        return
    differences = [(a - b).norm() for a, b in zip(gradients, standard.gradients, strict=True)]
    norm = torch.stack([g.norm() for g in standard.gradients]).norm()
    difference = float(torch.stack(differences).norm() / norm)
    if difference > 1e-4:
        raise SystemExit(f"error: gradients differ by {difference:.2g}")
    contestant.difference = difference


def count_memory(contestant: Contestant, pairs: PairsInMemory) -> None:
    """Peaks of live tensor bytes of a step whose optimiser has its state."""
    count = LiveBytes()
    for kind, tensors in contestant.kinds.items():
        count.add(tensors, kind)  # type: ignore[arg-type]
    count.add([list(state.values()) for state in contestant.optimizer.state.values()], "optimizer")
    hooks = count_gradients(count, contestant.parameters)  # type: ignore[arg-type]
    with count:
        contestant.run(pairs, 1)
    for hook in hooks:
        hook.remove()
    contestant.peaks = {**{str(kind): float(size) for kind, size in count.peaks.items()}, "peak": count.peak}


def growth(size: str, trainings: Sequence[str]) -> list[dict[str, Any]]:
    """What the activations of a pair of 4,096 frames need, as a multiple of those of a pair of 1,024."""
    width, depth = map(int, size.split("x"))
    rows = []
    for name in trainings:
        activations: dict[int, float] = {}
        shares = []
        for frames in (LONGEST // 4, LONGEST):
            with tempfile.TemporaryDirectory() as folder:
                contestant = build_ours(width, depth, name, folder, pairs=1)
                contestant.run(draw_pairs((8, 8), 0, pairs=1), 0)
                count_memory(contestant, draw_pairs((frames, frames), 1, pairs=1))
            peaks = contestant.peaks
            activations[frames] = peaks["activations"]  # the fixed kinds need not all be there at the peak
            shares.append(activations[frames] / peaks["peak"])
        ratio = activations[LONGEST] / activations[LONGEST // 4]
        rows.append({"training": name, "times": ratio, "least_share_of_peak": min(shares)})
    return [round_values(row, 3) for row in rows]


def matmul_rate(width: int, frames: int) -> float:
    """The best FLOPs a second of `torch.mm` over the matrix shapes of the network."""
    best = 0.0
    for inner, outer in ((width, width), (width, 4 * width), (4 * width, width)):
        a, b = torch.randn(frames, inner), torch.randn(inner, outer)
        result = torch.mm(a, b)
        for _ in range(5):
            start_s = time.process_time()
            for _ in range(4):
                torch.mm(a, b, out=result)
            best = max(best, 8 * frames * inner * outer / (time.process_time() - start_s))
    return best


@dataclass
class Rounds:
    """What the rounds of a bench were run on."""

    frames: list[int] = field(default_factory=list)
    """Valid frames."""
    paddings: list[float] = field(default_factory=list)
    """Frames of the padded stack over valid frames."""
    rates: list[float] = field(default_factory=list)
    """Attainable FLOPs a second."""


def run_rounds(
    contestants: Mapping[str, Contestant], frames: tuple[int, int], rounds: int, width: int
) -> Rounds:
    """Time all contestants in turn, on new pairs each round."""
    result = Rounds()
    for number in range(1, rounds + 1):
        pairs = draw_pairs(frames, number)
        lengths = [len(song) for song in pairs.latents.values()]
        result.frames.append(sum(lengths))
        result.paddings.append(max(lengths) * len(lengths) / sum(lengths))
        result.rates.append(matmul_rate(width, round(statistics.mean(lengths))))
        for contestant in contestants.values():
            start_s = time.process_time()
            contestant.run(pairs, number + 2)
            contestant.seconds.append(time.process_time() - start_s)
    return result


def summarize(
    name: str, contestant: Contestant, standard: Contestant, rounds: Rounds, flops_per_frame: float
) -> dict[str, Any]:
    """A row of the table; `flops_per_frame` are those of a valid frame, without recomputation."""
    ratios = [a / b for a, b in zip(standard.seconds, contestant.seconds, strict=True)]
    shares = [
        flops_per_frame * n / seconds / rate
        for n, seconds, rate in zip(rounds.frames, contestant.seconds, rounds.rates, strict=True)
    ]
    row = {
        "training": name,
        "pairs_ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "gradient_difference": contestant.difference,
        "share": statistics.median(shares),
        "seconds": statistics.median(contestant.seconds),
    }
    if contestant.peaks:
        row |= {
            "peak_mib": contestant.peaks["peak"] / MIB,
            "memory_ratio": contestant.peaks["peak"] / standard.peaks["peak"],
            "activations_mib": contestant.peaks["activations"] / MIB,
            "gflop_of_first": contestant.flops / 1e9,
            "flop_bound": standard.flops / contestant.flops,
        }
    return round_values(row, 3)


def bench(size: str, frames: tuple[int, int], rounds: int, trainings: Sequence[str]) -> dict[str, Any]:
    """All trainings beside the published way."""
    width, depth = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        standard = build_published(width, depth)
        contestants = {PUBLISHED: standard}
        contestants |= {name: build_ours(width, depth, name, folder) for name in trainings}
        first = draw_pairs(frames, 0)
        for name, contestant in contestants.items():
            _, _, addition = name.partition(",")
            run_first(contestant, first, standard if addition != "cached" else None)
            if addition != "compile":  # counting switches compiled code off
                count_memory(contestant, first)
                contestant.flops = count_flops(partial(contestant.run, first, 2))
            print(name, contestant.difference, contestant.peaks, file=sys.stderr, flush=True)
        result = run_rounds(contestants, frames, rounds, width)
    valid = sum(len(song) for song in first.latents.values())
    rows = []
    for name, contestant in contestants.items():
        kind = "lora" if name.startswith("lora") else "full"
        plain = next((c for n, c in contestants.items() if n.startswith(kind) and "," not in n), standard)
        rows.append(summarize(name, contestant, standard, result, plain.flops / valid))
    return {
        "size": size,
        "frames": frames,
        "padded_over_valid": round(statistics.median(result.paddings), 3),
        "gflops_attainable": round(statistics.median(result.rates) / 1e9, 1),
        "rows": rows,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512x8")
    parser.add_argument("--frames", nargs=2, type=int, default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trainings", nargs="+", default=["full-1", "full-2", "full-4", "lora-1"])
    parser.add_argument("--growth", action="store_true")
    args = parser.parse_args()
    if args.growth:
        print(json.dumps(growth(args.size, args.trainings), indent=1))
        return
    print(json.dumps(bench(args.size, tuple(args.frames), args.rounds, args.trainings), indent=1))


if __name__ == "__main__":
    main()
