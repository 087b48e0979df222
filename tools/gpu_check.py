"""On a machine with a GPU: does it compute what the CPU computes, how fast, in how much memory? JSON out.

    python tools/gpu_check.py [--dim 2048 --depth 16 --frames 2048]

Nothing in the documentation claims GPU numbers; this is how an owner of one gets them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.models.diffrhythm.network import DiffRhythmTransformer


def inputs(batch: int, frames: int, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        "x": torch.randn(batch, frames, 64, generator=generator),
        "time": torch.rand(batch, generator=generator),
        "text": torch.randint(0, 364, (batch, frames), generator=generator),
        "style": torch.randn(batch, 512, generator=generator),
        "audio": torch.zeros(batch, frames, 64),
        "start_time": torch.zeros(batch),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median time of a call, after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def agreement() -> dict[str, float]:
    """The largest difference from the CPU of a small network, in fp32 and under bf16 autocast."""
    torch.manual_seed(0)
    network = DiffRhythmTransformer(dim=256, depth=4, num_attention_heads=4).eval()
    with torch.no_grad():
        expected = network(**inputs(2, 256, "cpu"))
        network.cuda()
        exact = network(**inputs(2, 256, "cuda")).cpu()
        with torch.autocast("cuda", torch.bfloat16):
            rounded = network(**inputs(2, 256, "cuda")).float().cpu()
    return {
        "fp32_max_difference": float((exact - expected).abs().max()),
        "bf16_max_difference": float((rounded - expected).abs().max()),
    }


def speed(dim: int, depth: int, frames: int, checkpointing: bool) -> dict[str, float]:
    """One pair, forward and backward, and one forward, under bf16 autocast."""
    network = DiffRhythmTransformer(dim=dim, depth=depth).cuda().train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    batch = inputs(2, frames, "cuda")

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return network(**batch)

    def step() -> None:
        forward().float().square().mean().backward()
        network.zero_grad()

    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        once = seconds(forward)
    return {
        "forward_s": once,
        "forward_backward_s": seconds(step),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--frames", type=int, default=2048)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no CUDA GPU here; there is nothing to check", file=sys.stderr)
        return 2
    differences = agreement()
    result: dict[str, object] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        **differences,
    }
    for checkpointing in (False, True):
        result[f"checkpointing_{checkpointing}"] = speed(args.dim, args.depth, args.frames, checkpointing)
    print(json.dumps(result, indent=1))
    return int(differences["fp32_max_difference"] > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
