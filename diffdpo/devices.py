"""The device of a process: CUDA, Apple's MPS or the CPU, chosen in one place."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from diffdpo.errors import ConfigError

DEVICE = "DIFFDPO_DEVICE"
"""The environment variable that `--device` sets."""
DEVICES = ("auto", "cuda", "mps", "cpu")


def choose_device(name: str = "") -> torch.device:
    """The device of this process by name; "" is the environment's, and auto the best there is.

    Under `accelerate launch` every process has a GPU of its own. ConfigError for a device that is not there.
    """
    name = name or os.environ.get(DEVICE) or "auto"
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (":" in name and not (number.isdecimal() and kind == "cuda")):
        raise ConfigError(f"device={name}: choose one of {', '.join(DEVICES)}, or a GPU by number, cuda:1")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        kind = next(candidate for candidate in ("cuda", "mps", "cpu") if available[candidate])
    if not available[kind]:
        raise ConfigError(f"device={name}: PyTorch sees no such device here; choose auto or cpu")
    if kind != "cuda":
        return torch.device(kind)
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device("cuda", index)


def is_cpu_forced() -> bool:
    """Whether the CPU was chosen although there is another device."""
    return choose_device().type == "cpu" and choose_device("auto").type != "cpu"


def widest_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point type that a device has: MPS has no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bf16 faster than those of fp32: all but CPUs without AMX or
    AVX-512-bf16, on which it is 7 to 30 times slower."""
    if device.type != "cpu":
        return True
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@contextmanager
def unchanged_randomness(device: torch.device) -> Iterator[None]:
    """A context after which torch's random numbers go on as before it, on the CPU and on the device.

    Memory that the context needed on a GPU is given back.
    """
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.random.fork_rng(devices=[device.index or 0]):
        yield
    torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def allocated_peak(device: torch.device) -> int | None:
    """The most bytes that tensors of this process held on a GPU at a time; None where it is not counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def resident_peak() -> int:
    """The most memory of this process that was resident at a time, in bytes.

    VmHWM starts anew with the program; on Linux, ru_maxrss starts with the peak of the program that began it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    words = status.partition("VmHWM:")[2].split()
    return int(words[0]) * 1024 if words else 0
