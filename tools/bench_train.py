"""Times a preference step and counts its memory, beside the published way, in one run. JSON out.

    python tools/bench_train.py [--size 512x8] [--frames 256 1024] [--rounds 3] [--trainings full-1 …]
    python tools/bench_train.py --growth [--size 256x4]

The published way is Diffusion-DPO's: two full models, winners and losers of all pairs stacked and padded to the
longest, once through the policy and once through the reference, AdamW. Ours is `train_step` as the trainer runs it.
Each round draws lengths log-uniformly and runs all trainings in turn on the same pairs; `pairs_ratio` is the median
over rounds of the published way's processor time over the training's, `flop_bound` what counting operations allows.
Gradients of full trainings are compared with the published way's in a first, untimed step; memory is the peak of
live tensor bytes of a second one. `share`: FLOPs of the valid frames, recomputation not counted, over processor time
and the best rate of `torch.mm` on the network's shapes. `--growth` measures peaks without weights, gradients, optimiser and reference at 1,024 and 4,096 frames.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.data.datasets.stream import batches, micro_batches
from diffdpo.mining.values import Pair
from diffdpo.objectives.dpo import DPO
from diffdpo.randomness import generator
from diffdpo.training.checkpointing import CheckpointingConfig
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.estimate import auxiliary_tensors
from diffdpo.training.live_bytes import LiveBytes, count_gradients
from diffdpo.training.loop import train_step
from diffdpo.training.references import FrozenCopy
from diffdpo.training.session import prepare_training
from diffdpo.training.step import Standards, part_outputs, sample_noise, stack_rows
from diffdpo.training.strategy import build_accelerator
from diffdpo.types import Row
from tools.bench.measure import round_values
from tools.bench_memory import CHANNELS, MIB, build, embedding

PAIRS = 4
LONGEST = 4096
RATE = 1e-6
BETA = 100.0
FIXED = ("weights", "gradients", "optimizer", "reference")
PUBLISHED = "published"
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "checkpointing": {"checkpointing": CheckpointingConfig()},
    "selective": {"checkpointing": CheckpointingConfig("selective")},
    "half": {"checkpointing": CheckpointingConfig(every=2)},
    "split": {"split_backward": True},
}
"""What a training may add to `full-N` or `lora-N`, N examples a micro-batch, after a comma."""


@dataclass
class Contestant:
    """A way of training: its step, and what it was measured at."""

    run: Callable[[PairsInMemory, int], None]
    parameters: list[Tensor]
    kinds: Mapping[str, list[Any]]
    optimizer: Any
    seconds: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    flops: float = 0.0
    peaks: dict[str, float] = field(default_factory=dict)


def draw_pairs(frames: tuple[int, int], number: int, pairs: int = PAIRS) -> PairsInMemory:
    """Pairs of noise whose lengths are log-uniform between two numbers of frames, by a round's number."""
    draws = generator(number, "bench", "lengths")
    low, high = map(math.log, frames)
    songs = [f"{kind}{i}" for i in range(pairs) for kind in ("w", "l")]
    lengths = {s: round(math.exp(low + (high - low) * float(torch.rand((), generator=draws)))) for s in songs}
    return PairsInMemory(
        pairs=[
            Pair(prompt_id=f"p{i}", group=f"p{i}", winner=f"w{i}", loser=f"l{i}", rule="r", margins={})
            for i in range(pairs)
        ],
        latents={s: torch.randn(n, CHANNELS, generator=draws) for s, n in lengths.items()},
        rows={s: Row(embedding=embedding(), frames=n) for s, n in lengths.items()},
        frames_per_second=21.5,
    )


def build_published(width: int, depth: int) -> Contestant:
    """Two full models, one forward pass each of all songs, padded to the longest."""
    model, cfg, objective = build_exact(width, depth), TrainConfig(trackers=[]), DPO(beta=BETA)
    network, reference = model.network.train(), FrozenCopy.take(model.network, torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)

    def run(pairs: PairsInMemory, step: int) -> None:
        plan = micro_batches(step, global_batch=PAIRS, per_device=PAIRS, rank=0, world=1)
        (batch,) = batches(pairs, iter(plan), seed=0, workers=0)
        noise = sample_noise(batch, cfg, 0, model.spec.times)
        standards = Standards(reference=reference)
        parts = [stack_rows(model, batch, noise)]
        values = part_outputs(model, network, batch, objective, noise, parts, standards)
        objective(values).loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    kinds = {"weights": list(network.parameters()), "reference": list(reference.network.parameters())}
    return Contestant(run, list(network.parameters()), kinds, optimizer)


def build_ours(width: int, depth: int, name: str, folder: str, pairs: int = PAIRS) -> Contestant:
    """A training by its name, such as `lora-2,checkpointing`."""
    kind, _, addition = name.partition(",")
    method, _, per_device = kind.partition("-")
    cfg = TrainConfig(
        global_batch=pairs, per_device=int(per_device), learning_rate=RATE, trackers=[],
        lora=LoraConfig(rank=16) if method == "lora" else None, **SETTINGS[addition],
    )  # fmt: skip
    model = build_exact(width, depth)
    training, _ = prepare_training(
        model, draw_pairs((8, 8), 0), DPO(beta=BETA), cfg, out=Path(folder), seed=0,
        accelerator=build_accelerator(cfg, folder), name="dpo",
    )  # fmt: skip

    def run(songs: PairsInMemory, step: int) -> None:
        plan = micro_batches(step, global_batch=cfg.global_batch, per_device=cfg.per_device, rank=0, world=1)
        training.accelerator.gradient_accumulation_steps = pairs // cfg.per_device  # one number a process
        train_step(training, step, batches(songs, iter(plan), seed=0, workers=0), {})

    network = training.accelerator.unwrap_model(training.policy)
    kinds = {"weights": list(network.parameters()), "reference": auxiliary_tensors(training.reference)}
    parameters = [p for p in network.parameters() if p.requires_grad]
    return Contestant(run, parameters, kinds, training.optimizer.optimizer)


def build_exact(width: int, depth: int) -> Any:
    """The network with the window that hides padding."""
    model = build(width, depth, LONGEST, "cpu")
    model.spec = type(model.spec)(**{**vars(model.spec), "window": "exact"})
    return model


def check_gradients(contestant: Contestant, pairs: PairsInMemory, standard: Contestant | None) -> float:
    """Run the first step; the relative difference of its gradients from the standard's, which ends the bench above
    1e-4."""

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        contestant.gradients = [p.grad.clone() for p in contestant.parameters if p.grad is not None]

    hook = contestant.optimizer.register_step_pre_hook(keep)
    with FlopCounterMode(display=False) as count:
        contestant.run(pairs, 0)
    hook.remove()
    contestant.flops = float(count.get_total_flops())
    own = contestant.gradients
    if standard is None or len(own) != len(standard.gradients):
        return 0.0
    differences = [(a - b).norm() for a, b in zip(own, standard.gradients, strict=True)]
    contestant.gradients = []
    norm = torch.stack([g.norm() for g in standard.gradients]).norm()
    difference = float(torch.stack(differences).norm() / norm)
    if difference > 1e-4:
        raise SystemExit(f"error: gradients differ by {difference:.2g}")
    return difference


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


def valid_frames(pairs: PairsInMemory) -> int:
    """Frames of all songs."""
    return sum(len(song) for song in pairs.latents.values())


def growth(size: str, trainings: Sequence[str]) -> list[dict[str, Any]]:
    """What the activations of a pair of 4,096 frames need, as a multiple of those of a pair of 1,024."""
    width, depth = map(int, size.split("x"))
    rows = []
    for name in trainings:
        rest: dict[int, float] = {}
        shares = []
        for frames in (LONGEST // 4, LONGEST):
            with tempfile.TemporaryDirectory() as folder:
                contestant = build_ours(width, depth, name, folder, pairs=1)
                contestant.run(draw_pairs((8, 8), 0, pairs=1), 0)
                count_memory(contestant, draw_pairs((frames, frames), 1, pairs=1))
            peaks = contestant.peaks
            rest[frames] = peaks["peak"] - sum(peaks.get(kind, 0) for kind in FIXED)
            shares.append(rest[frames] / peaks["peak"])
        ratio = rest[LONGEST] / rest[LONGEST // 4]
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


def bench(size: str, frames: tuple[int, int], rounds: int, trainings: Sequence[str]) -> dict[str, Any]:
    """All trainings beside the published way."""
    width, depth = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        standard = build_published(width, depth)
        contestants = {PUBLISHED: standard}
        contestants |= {name: build_ours(width, depth, name, folder) for name in trainings}
        first, differences = draw_pairs(frames, 0), {}
        for name, contestant in contestants.items():
            differences[name] = check_gradients(contestant, first, None if name == PUBLISHED else standard)
            count_memory(contestant, first)
        paddings, rates, counts = [], [], [valid_frames(first)]
        for number in range(1, rounds + 1):
            pairs = draw_pairs(frames, number)
            lengths = [len(song) for song in pairs.latents.values()]
            counts.append(sum(lengths))
            paddings.append(max(lengths) * len(lengths) / sum(lengths))
            rates.append(matmul_rate(width, round(statistics.mean(lengths))))
            for contestant in contestants.values():
                start_s = time.process_time()
                contestant.run(pairs, number + 1)
                contestant.seconds.append(time.process_time() - start_s)
    rows = []
    for name, contestant in contestants.items():
        ratios = [a / b for a, b in zip(standard.seconds, contestant.seconds, strict=True)]
        row = {
            "training": name,
            "pairs_ratio": statistics.median(ratios),
            "lowest_ratio": min(ratios),
            "peak_mib": contestant.peaks["peak"] / MIB,
            "memory_ratio": contestant.peaks["peak"] / standard.peaks["peak"],
            "activations_mib": contestant.peaks["activations"] / MIB,
            "gradient_difference": differences[name],
            "gflop_of_first": contestant.flops / 1e9,
            "flop_bound": standard.flops / contestant.flops,
            "share": statistics.median(
                contestant.flops * counts[i] / counts[0] / seconds / rates[i - 1]
                for i, seconds in enumerate(contestant.seconds, 1)
            )
            if name.split(",")[-1] == name and name != PUBLISHED
            else None,
            "seconds": statistics.median(contestant.seconds),
        }
        rows.append(round_values(row, 3))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {
        "size": size,
        "frames": frames,
        "valid_frames_of_first": counts[0],
        "padded_over_valid": round(statistics.median(paddings), 3),
        "gflops_attainable": round(statistics.median(rates) / 1e9, 1),
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
