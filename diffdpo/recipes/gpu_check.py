"""The command `gpu-check`: what a GPU computes, how fast and in how much memory, as JSON and as a table.

The documentation claims no numbers of GPUs; their owners measure them with this command. Every part runs in a
process of its own with a limit of time: what runs out of memory or cannot be compiled is a row of the table and not
its end.
"""

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from diffdpo.checks import check_range
from diffdpo.devices import DEVICE, choose_device
from diffdpo.errors import DataError
from diffdpo.progress import log
from diffdpo.runs import atomic_write, write_json

JSON_FILE, TABLE_FILE = "gpu_check.json", "gpu_check.md"
MIN_SECONDS = 10.0
"""A part is not begun with less time than this left."""

SMALL_PATIENCE = 10.0
"""Tiny networks may take so many times the limit of a part: they run on machines with other work."""


@dataclass(frozen=True)
class GpuCheck:
    """What is measured, in how much time."""

    device: str = ""
    """cuda, cuda:1 or cpu; "": the GPU."""
    small: bool = False
    """Tiny sizes, to try the command itself."""
    minutes: float = 8.0
    out: str = "out"
    parts: tuple[str, ...] = ()
    """Beginnings of names of parts; all where there are none."""

    def __post_init__(self) -> None:
        check_range(self, "minutes", above=0)


@dataclass(frozen=True)
class CheckPart:
    """One thing that is measured; those before others are more important."""

    name: str
    kind: str
    limit_s: float
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _step(name: str, limit_s: float = 60.0, **arguments: Any) -> CheckPart:
    return CheckPart(f"step {name}", "step", limit_s, arguments)


CHECK_PARTS: tuple[CheckPart, ...] = (
    CheckPart("device", "device", 60),
    CheckPart("numbers fp32", "numbers", 60, {"precision": "fp32"}),
    CheckPart("numbers bf16", "numbers", 60, {"precision": "bf16"}),
    _step("LoRA, 2 x 2,048, checkpointing", checkpointing=True),
    _step("LoRA, 2 x 2,048"),
    _step("full, 2 x 2,048, checkpointing", lora=False, checkpointing=True),
    _step("LoRA, 2 x 6,144, checkpointing", length=1, checkpointing=True),
    CheckPart("sampler", "sampler", 60),
    CheckPart("scorer fp32", "scorer", 45),
    _step("LoRA, 2 x 2,048, compiled", 120.0, compile_blocks=True),
    _step("full, 2 x 6,144, checkpointing", length=1, lora=False, checkpointing=True),
    _step("LoRA, 2 x 6,144, split, checkpointing", length=1, checkpointing=True, split=True),
    _step("LoRA, 2 x 6,144", length=1),
    _step("full, 2 x 2,048", lora=False),
    _step("full, 2 x 6,144", length=1, lora=False),
    CheckPart("scorer bf16", "scorer", 45, {"dtype": "bfloat16"}),
)
"""In the order of their importance: the time is used up from the front."""


def gpu_check(cfg: GpuCheck) -> str:
    """Measure all parts; write gpu_check.json and gpu_check.md into a folder, and return the table.

    DataError without a GPU unless the CPU is named, and where the device computes other numbers than the CPU.
    """
    device = _device_name(cfg.device)
    parts = [part for part in CHECK_PARTS if not cfg.parts or part.name.startswith(cfg.parts)]
    if not parts:
        names = ", ".join(part.name for part in CHECK_PARTS)
        raise DataError(f"--part {' '.join(cfg.parts)}: no part begins so; there are {names}")
    rows = measure_parts(parts, device, small=cfg.small, budget_s=60 * cfg.minutes)
    result = {"device": device, "small": cfg.small, "python": platform.python_version(), "parts": rows}
    out = Path(cfg.out)
    write_json(out / JSON_FILE, result)
    table = render_table(rows, small=cfg.small)
    atomic_write(out / TABLE_FILE, table + "\n")
    check_equal(rows, out / JSON_FILE)
    return table


def check_equal(rows: Sequence[Mapping[str, Any]], location: Path) -> None:
    """DataError where a part computed other numbers than the CPU."""
    if parts := [row["name"] for row in rows if row["status"] == "differs"]:
        raise DataError(
            f"the device computes other numbers than the CPU in {', '.join(parts)}: see {location}"
        )


def _device_name(name: str) -> str:
    """The device to be measured: a GPU, unless the CPU is named."""
    device = choose_device(name)
    is_named = (name or os.environ.get(DEVICE) or "auto") != "auto"
    if device.type != "cuda" and not is_named:
        raise DataError("torch sees no CUDA GPU here; there is nothing to check (try --device cpu --small)")
    return str(device)


def measure_parts(
    parts: Sequence[CheckPart],
    device: str,
    *,
    small: bool,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """The row of each part, in turn. Once the time is used up, the others are skipped."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:  # imports once; it must not touch the GPU, which does not survive a fork
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        context.set_forkserver_preload(["diffdpo.recipes.gpu_parts"])
    rows, begin_s = [], clock()
    for part in parts:
        left_s = budget_s - (clock() - begin_s)
        if left_s < MIN_SECONDS:
            row = {"status": "skipped", "reason": "no time was left; give more with --minutes"}
        else:
            limit_s = min(part.limit_s * (SMALL_PATIENCE if small else 1), left_s)
            row = _run_child(context, part, device, small=small, limit_s=limit_s)
            if row["status"] == "bad fork":  # something that is imported touched the GPU
                context = multiprocessing.get_context("spawn")
                row = _run_child(context, part, device, small=small, limit_s=limit_s)
        rows.append({"name": part.name, **row})
        log(f"{part.name}: {row['status']} {row.get('reason', '')}".rstrip())
    return rows


def _run_child(context: Any, part: CheckPart, device: str, *, small: bool, limit_s: float) -> dict[str, Any]:
    """The row of a part from a process of its own, which is killed at its limit."""
    start_s = time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=child_main, args=(sender, part.kind, dict(part.arguments), device, small)
    )
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(limit_s) else None
    except EOFError:
        process.join()
        code = process.exitcode or 0
        cause = f"signal {-code}: out of memory?" if code < 0 else f"exit code {code}"
        row = {"status": "failed", "reason": f"the process ended with {cause}"}
    if row is None:
        row = {"status": "failed", "reason": f"not done after {limit_s:.0f} s"}
    process.join(2.0)
    if process.is_alive():
        process.kill()
        process.join()
    receiver.close()
    return {**row, "total_s": time.monotonic() - start_s}


def child_main(sender: Connection, kind: str, arguments: Mapping[str, Any], device: str, small: bool) -> None:
    """Measure a part, in a child process, and send its row."""
    from diffdpo.recipes.gpu_parts import measure_part

    sender.send(measure_part(kind, arguments, device, small=small))
    sender.close()


COLUMNS: Mapping[str, tuple[str, str]] = {
    "seconds": ("s", ".3g"),
    "pairs_per_s": ("pairs/s", ".3g"),
    "frames_per_s": ("frames/s", ".0f"),
    "matmul_share": ("share of matmul", ".1%"),
    "allocated_gib": ("allocated GiB", ".2f"),
    "live_gib": ("live GiB", ".2f"),
    "estimate_gib": ("estimate GiB", ".2f"),
    "rtf": ("s a s of sound", ".3g"),
}
"""Columns of the table, by key: title and format."""


def render_table(rows: Sequence[Mapping[str, Any]], *, small: bool = False) -> str:
    """The rows as Markdown: a line about the device, a line about equal numbers, a table of speed and memory."""
    lines = ["Tiny networks: these numbers say that the command works, and nothing about the device.", ""]
    lines = lines if small else []
    for row in rows:
        name, has_numbers = row["name"], row["status"] in ("ok", "differs")
        if name == "device" and has_numbers:
            keys = ("name", "memory_gib", "driver", "cuda", "torch", "fp32_tflops", "bf16_tflops")
            values = [f"{key} {_number_text(row[key])}" for key in keys if row.get(key)]
            lines += ["Device: " + ", ".join(values) + ".", ""]
        elif name.startswith("numbers") and has_numbers:
            values = [f"{n} {row[f'{n}_difference']:.1e}" for n in ("forward", "gradient", "sampler")]
            verdict = f"above the bound: {', '.join(row['excess'])}" if row["excess"] else "within the bounds"
            lines += [f"{name}: relative difference from the CPU's fp32: {', '.join(values)}; {verdict}.", ""]
    titles = [title for title, _ in COLUMNS.values()]
    lines += [f"| part | {' | '.join(titles)} | |", "|---" * (len(titles) + 2) + "|"]
    for row in rows:
        if row["status"] in ("ok", "differs") and row["name"].startswith(("device", "numbers")):
            continue  # above the table
        cells = [format(row[key], form) if key in row else "" for key, (_, form) in COLUMNS.items()]
        note = "" if row["status"] == "ok" else f"{row['status']}: {row.get('reason', '')}"
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {note} |")
    return "\n".join(lines)


def _number_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
