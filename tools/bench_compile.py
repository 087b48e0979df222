"""Measures what compiled blocks save of a step's processor time, songs of several lengths. JSON out.

    python tools/bench_compile.py [--width 512] [--depth 8] [--frames 256 512 768] [--rounds 3] [--checkpointing]

A pass forward and backward of a random DiffRhythm network on one song, all weights trained, fp32, one thread. Plain
and compiled steps take turns; the first compiled step, which compiles, is a row of its own. `ratio` is the
compiled step's processor time over the plain one's, the least of the rounds of each; `graphs` counts what was
compiled by then; `loss_error` and `norm_error` are relative differences of the loss and of the norm of the
gradients.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

import torch
from torch._dynamo.utils import counters

from diffdpo.models.compilation import compile_blocks
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from tools.bench.measure import round_values

CHANNELS, STYLE = 64, 512


def build(width: int, depth: int, *, checkpointing: bool, compilation: bool) -> DiffRhythmTransformer:
    """A random network of the published kind, the same each time."""
    torch.manual_seed(0)
    network = DiffRhythmTransformer(dim=width, depth=depth, num_attention_heads=width // 64).train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    if compilation:
        compile_blocks(network, "compile")
    return network


def measure_step(network: Any, frames: int) -> tuple[float, float, float]:
    """Processor seconds, loss and norm of the gradients of a step."""
    generator = torch.Generator().manual_seed(frames)
    x, target = torch.randn(2, 1, frames, CHANNELS, generator=generator)
    text = torch.randint(0, 363, (1, frames), generator=generator)
    network.zero_grad()
    start_s = time.process_time()
    output = network(
        x, torch.tensor([0.4]), text=text, style=torch.ones(1, STYLE), audio=torch.zeros_like(x),
        start_time=torch.zeros(1),
    )  # fmt: skip
    loss = (output - target).square().mean()
    loss.backward()
    seconds = time.process_time() - start_s
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    return seconds, float(loss), float(torch.stack(norms).norm())


def bench(plain: Any, inductor: Any, frames: int, rounds: int) -> dict[str, Any]:
    """A row for songs of one length."""
    inductor_steps, plain_steps = [], []
    for _ in range(rounds):
        plain_steps.append(measure_step(plain, frames))
        inductor_steps.append(measure_step(inductor, frames))
    return {
        "frames": frames,
        "plain_cpu_s": min(seconds for seconds, *_ in plain_steps),
        "compiled_cpu_s": min(seconds for seconds, *_ in inductor_steps),
        "ratio": min(seconds for seconds, *_ in inductor_steps) / min(seconds for seconds, *_ in plain_steps),
        "graphs": counters["stats"]["unique_graphs"],
        "loss_error": abs(inductor_steps[-1][1] / plain_steps[-1][1] - 1),
        "norm_error": abs(inductor_steps[-1][2] / plain_steps[-1][2] - 1),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 512, 768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain, inductor = (
        build(args.width, args.depth, checkpointing=args.checkpointing, compilation=value)
        for value in (False, True)
    )
    first, *_ = measure_step(inductor, args.frames[0])
    rows = [
        {"frames": args.frames[0], "first_compiled_cpu_s": first},
        *(bench(plain, inductor, frames, args.rounds) for frames in args.frames),
    ]
    print(json.dumps([round_values(row, 3) for row in rows], indent=1))


if __name__ == "__main__":
    main()
