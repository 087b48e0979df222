"""The command `gpu-check`: whether a GPU computes what the CPU computes, how fast and in how much memory.

The documentation claims no numbers of GPUs; their owners measure them with this command.
"""

import json
import time
from collections.abc import Callable

import torch

from diffdpo.errors import DataError
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer

LARGEST_DIFFERENCE = 1e-3
"""Largest difference between a GPU's and a CPU's fp32 results that is accepted, for outputs of size one."""


def inputs(batch: int, frames: int, device: str) -> dict[str, torch.Tensor]:
    """Random arguments of DiffRhythm's network, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "x": torch.randn(batch, frames, 64, generator=generator),
        "time": torch.rand(batch, generator=generator),
        "text": torch.randint(0, 364, (batch, frames), generator=generator),
        "style": torch.randn(batch, 512, generator=generator),
        "audio": torch.zeros(batch, frames, 64),
        "start_time": torch.zeros(batch),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median time of a call, after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start_s)
    return sorted(times[1:])[repeats // 2]


def agreement() -> dict[str, float]:
    """The largest difference from the CPU of a small network, in fp32 and under bf16 autocast."""
    torch.manual_seed(0)
    network = DiffRhythmTransformer(dim=256, depth=4, num_attention_heads=4).eval()
    with torch.no_grad():
        cpu_output = network(**inputs(2, 256, "cpu"))
        network.cuda()
        fp32_output = network(**inputs(2, 256, "cuda")).cpu()
        with torch.autocast("cuda", torch.bfloat16):
            bf16_output = network(**inputs(2, 256, "cuda")).float().cpu()
    return {
        "fp32_max_difference": float((fp32_output - cpu_output).abs().max()),
        "bf16_max_difference": float((bf16_output - cpu_output).abs().max()),
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
        forward_s = seconds(forward)
    return {
        "forward_s": forward_s,
        "forward_backward_s": seconds(step),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def gpu_check(dim: int, depth: int, frames: int) -> str:
    """The measurements as JSON. DataError without a GPU, or where its results are not those of the CPU."""
    if not torch.cuda.is_available():
        raise DataError("torch sees no CUDA GPU here; there is nothing to check")
    result: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    differences = agreement()
    result |= differences
    for checkpointing in (False, True):
        result[f"checkpointing_{checkpointing}"] = speed(dim, depth, frames, checkpointing)
    text = json.dumps(result, indent=1)
    if differences["fp32_max_difference"] > LARGEST_DIFFERENCE:
        raise DataError(f"the GPU computes other numbers than the CPU: {text}")
    return text
