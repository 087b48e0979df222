"""The parts of `gpu-check`: each measures one thing on one device and answers with numbers."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffdpo.data.datasets.stream import batches
from diffdpo.devices import DEVICE, allocated_peak, choose_device, synchronize
from diffdpo.encoders import muq
from diffdpo.encoders.songeval import BLOCKS, Head, SongEvalNetwork
from diffdpo.errors import plain
from diffdpo.objectives.dpo import DPO
from diffdpo.recipes.gpu_numbers import (
    FRAMES_PER_SECOND,
    FULL,
    SMALL,
    BenchSizes,
    instrumental,
    numbers_part,
    random_model,
    random_pair,
)
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import Request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.estimate import auxiliary_tensors, estimate_memory
from diffdpo.training.flops import matmul_rate, matrix_shapes
from diffdpo.training.live_bytes import LiveBytes, count_gradients
from diffdpo.training.loop import train_step
from diffdpo.training.run import Training
from diffdpo.training.session import prepare_training
from diffdpo.training.sharding import GIB
from diffdpo.training.strategy import build_accelerator
from diffdpo.types import Row

HEADROOM = 0.92
"""Share of a card's memory that a step may need by the estimate: the rest is for the context and workspaces."""
BAD_FORK = "bad fork"
"""The status of a part whose process was forked from one that had touched the GPU: it must be started afresh."""


class NoMemoryError(Exception):
    """A part that would need more memory than there is, by the estimate."""


def device_part(sizes: BenchSizes, device: torch.device) -> dict[str, Any]:
    """The name of the device, its memory, driver, and the rates of matrix products that it attains."""
    facts: dict[str, Any] = {"name": "CPU", "torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name, "memory_gib": properties.total_memory / GIB, "driver": _driver(),
            "cuda": torch.version.cuda, "capability": f"{properties.major}.{properties.minor}",
        }  # fmt: skip
    shapes = matrix_shapes(random_model(sizes.width, sizes.depth, sizes.frames[0], "meta").network)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rate = matmul_rate(shapes, 2 * sizes.frames[0], dtype, device, seconds=max(sizes.seconds / 20, 0.01))
        facts[f"{name}_tflops"] = rate / 1e12
    return facts


def _driver() -> str:
    """The version of NVIDIA's driver; "" where nvidia-smi is absent."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip().partition("\n")[0]


def step_part(
    sizes: BenchSizes,
    device: torch.device,
    *,
    length: int = 0,
    lora: bool = True,
    checkpointing: bool = False,
    compile_blocks: bool = False,
    split: bool = False,
) -> dict[str, Any]:
    """A DPO step on one pair under bf16: seconds, frames a second, share of the attainable rate, memory.

    `length` is the number of the length in `sizes.frames`. NoMemoryError if the estimate is above what is free.
    """
    frames = sizes.frames[length]
    cfg = TrainConfig(
        steps=1000, global_batch=1, per_device=1, precision="bf16", trackers=[], matmul_share=True,
        lora=LoraConfig(rank=16 if sizes is FULL else 2) if lora else None, gradient_checkpointing=checkpointing,
        split_backward=split,
    )  # fmt: skip
    sketch = random_model(sizes.width, sizes.depth, frames, "meta")
    row: dict[str, Any] = {
        "estimate_gib": estimate_memory(sketch, instrumental(), DPO(), cfg, frames).peak / GIB
    }
    if device.type == "cuda":
        check_room(row["estimate_gib"], torch.cuda.mem_get_info(device)[0] / GIB)
    model = random_model(sizes.width, sizes.depth, frames, str(device))
    with tempfile.TemporaryDirectory() as folder:
        cfg = TrainConfig(**{**vars(cfg), "compile": compile_blocks})
        training, _ = prepare_training(
            model, random_pair(frames), DPO(), cfg, out=Path(folder), seed=0, name="dpo",
            accelerator=build_accelerator(cfg, folder),
        )  # fmt: skip
        row |= _time_steps(training, sizes.seconds, device)
    return row


def check_room(needed_gib: float, free_gib: float) -> None:
    """NoMemoryError where less memory is free than is needed, with some room for what is not counted."""
    if needed_gib > HEADROOM * free_gib:
        raise NoMemoryError(f"needs {needed_gib:.1f} GiB by the estimate, {free_gib:.1f} GiB are free")


def _time_steps(training: Training, seconds: float, device: torch.device) -> dict[str, Any]:
    """Two steps to warm up, so many as fit into the time, and one in which live tensors are counted."""
    loader = batches(training.examples, iter([[i] for i in range(1000)]), seed=0, workers=0)
    meter, number = training.meter, 0
    if meter.flops is not None:
        meter.flops.formula.probes = (1,)  # all songs are of one length
    stream = meter.watch(loader)
    for number in range(2):
        train_step(training, number, stream, {})
    synchronize(device)
    meter.measure(1.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start_s, count = time.perf_counter(), 0
    while not count or (time.perf_counter() - start_s < seconds and count < 100):
        number, count = number + 1, count + 1
        train_step(training, number, stream, {})
        synchronize(device)
    metrics = meter.measure(time.perf_counter() - start_s)
    row: dict[str, Any] = {
        "seconds": metrics["seconds"] / count, "steps": count, "pairs_per_s": metrics["examples_per_s"],
        "frames_per_s": metrics["frames_per_s"], "matmul_share": metrics["matmul_share"],
    }  # fmt: skip
    if (peak := allocated_peak(device)) is not None:
        row["allocated_gib"] = peak / GIB
    if not training.cfg.compile:  # its code does not pass through a dispatch mode
        row["live_gib"] = _live_bytes(training, lambda: train_step(training, number + 1, stream, {})) / GIB
    return row


def _live_bytes(training: Training, step: Callable[[], object]) -> int:
    """Live tensor bytes of a step, as `estimate` counts them."""
    network, live = training.policy, LiveBytes()
    live.add([*network.parameters(), *network.buffers()], "weights")
    live.add([list(state.values()) for state in training.optimizer.state.values()], "optimizer")
    live.add(auxiliary_tensors(training.reference), "reference")
    hooks = count_gradients(live, network.parameters())
    with live:
        step()
    for hook in hooks:
        hook.remove()
    return live.peak


def sampler_part(sizes: BenchSizes, device: torch.device) -> dict[str, Any]:
    """Seconds of sound that the sampler makes a second, without the codec, guided and under bf16."""
    frames = sizes.frames[0]
    model = random_model(sizes.width, sizes.depth, frames, str(device))
    settings = SamplingConfig(steps=sizes.steps, guidance_scale=5.0, precision="bf16")
    request = Request(sample_id="s", row=Row(embedding=instrumental(), frames=frames))
    sample_batch(model, [request], SamplingConfig(steps=2, guidance_scale=5.0, precision="bf16"), seed=0)
    start_s = time.perf_counter()
    sample_batch(model, [request], settings, seed=0)  # its result is on the CPU: the device is done
    elapsed_s, song_s = time.perf_counter() - start_s, frames / FRAMES_PER_SECOND
    peak = allocated_peak(device)
    return {
        "seconds": elapsed_s, "song_s": song_s, "steps": sizes.steps, "rtf": elapsed_s / song_s,
        **({} if peak is None else {"allocated_gib": peak / GIB}),
    }  # fmt: skip


def scorer_part(sizes: BenchSizes, device: torch.device, dtype: str = "float32") -> dict[str, Any]:
    """Seconds of sound that SongEval rates a second, with MuQ's encoder of random weights."""
    torch.manual_seed(0)
    encoder = muq.MuQ(sizes.encoder, BLOCKS, getattr(torch, dtype))
    head = Head(sizes.encoder.dim, 4 * sizes.encoder.dim, 4, 5)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    network = SongEvalNetwork(encoder.eval().to(device), head.eval().to(device))
    wave = np.random.default_rng(0).standard_normal(int(sizes.clip_s * muq.MUQ_SAMPLE_RATE), dtype=np.float32)
    network.rate([wave]).cpu()
    start_s, count = time.perf_counter(), 0
    while not count or (time.perf_counter() - start_s < sizes.seconds and count < 100):
        ratings, count = network.rate([wave]).cpu(), count + 1
    elapsed_s = (time.perf_counter() - start_s) / count
    assert bool(ratings.isfinite().all()), "ratings of a clip must be numbers"
    return {"seconds": elapsed_s, "clip_s": sizes.clip_s, "rtf": elapsed_s / sizes.clip_s}


FUNCTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "device": device_part,
    "numbers": numbers_part,
    "step": step_part,
    "sampler": sampler_part,
    "scorer": scorer_part,
}


def measure_part(kind: str, arguments: Mapping[str, Any], device_name: str, *, small: bool) -> dict[str, Any]:
    """The row of a part: its numbers with `status` ok, or `status` skipped or failed with a reason of one line."""
    if device_name != "cpu" and torch.cuda._is_in_bad_fork():
        return {"status": BAD_FORK}
    _choose_gpu(device_name)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its workers would outlive a time limit
    device = choose_device()
    try:
        row = FUNCTIONS[kind](SMALL if small else FULL, device, **arguments)
    except NoMemoryError as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:  # whatever it is, it is one row of the table
        return {"status": "failed", "reason": failure_reason(error, device)}
    return {"status": "differs" if row.get("excess") else "ok", **row, "cpu_s": time.process_time()}


def _choose_gpu(device_name: str) -> None:
    """Make a device the one that this process sees as its first: accelerate knows GPUs by their rank only."""
    kind, _, number = device_name.partition(":")
    if number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(number)] if visible else number
    os.environ[DEVICE] = kind


def failure_reason(error: Exception, device: torch.device) -> str:
    """An error as one line; how much memory a GPU held when it had no more."""
    if isinstance(error, torch.OutOfMemoryError):
        peak = allocated_peak(device)
        return "out of memory" if peak is None else f"out of memory at {peak / GIB:.1f} GiB"
    text = " ".join(plain(str(error)).split())
    return f"{type(error).__name__}: {text[:200]}"
