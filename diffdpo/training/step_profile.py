"""A profile of one training step by torch.profiler: operations by kind, with time, rate, memory and shapes.

On the CPU the kinds add up to the time of the step: every operation counts for the time that it takes itself, and
what is left is Python between operations. On a GPU the time of kernels is shared out, and what is left is idle.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

from diffdpo.devices import synchronize
from diffdpo.progress import log
from diffdpo.runs import atomic_write, write_json
from diffdpo.training.run import Training
from diffdpo.training.throughput import DATA_WAIT

STEP = "step"
"""Name of the whole step in the profile."""
WARMUP = 2
"""Steps of a run before the one that is profiled: the first ones allocate, compile and fill caches."""
TOP_SHAPES = 3
REMAINDER = {"cpu": "python", "cuda": "idle"}
"""The kind of the time in which no operation ran."""
KIND_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "data wait": (DATA_WAIT,),
    "communication": ("nccl:", "gloo:", "c10d::", "mpi:", "DistributedDataParallel", "FSDP::all", "FSDP::reduce"),
    "optimizer": ("Optimizer.step", "Optimizer.zero_grad"),
    "attention": ("aten::scaled_dot_product", "aten::_scaled_dot_product", "aten::_flash_attention",
                  "aten::_efficient_attention"),
    "convolution": ("aten::conv", "aten::_conv", "aten::mkldnn_conv", "aten::cudnn_conv"),
    "matmul": ("aten::linear", "aten::matmul", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
               "aten::_scaled_mm", "aten::_int_mm", "aten::einsum", "aten::mv", "aten::addmv"),
    "compiled": ("Torch-Compiled Region", "CompiledFunction", "triton_", "inductor"),
}  # fmt: skip
"""Beginnings of names for each kind that an operation has with all that it calls; the first kind wins."""
MOVEMENT = frozenset(
    {
        "copy_", "_to_copy", "to", "clone", "contiguous", "cat", "stack", "split", "chunk", "index",
        "index_select", "gather", "scatter", "index_put_", "take", "pad", "constant_pad_nd", "repeat",
        "expand", "narrow", "slice", "select", "transpose", "t", "permute", "view", "reshape",
        "_unsafe_view", "_reshape_alias", "as_strided", "as_strided_", "unsqueeze", "squeeze", "flatten",
        "unflatten", "empty", "empty_like", "empty_strided", "new_empty", "zeros", "zeros_like", "ones",
        "ones_like", "full", "full_like", "fill_", "zero_", "detach", "detach_", "alias", "lift_fresh",
        "resize_", "pin_memory", "_pin_memory", "unbind", "movedim", "roll", "flip", "slice_backward",
        "select_backward", "index_put", "embedding", "embedding_dense_backward", "result_type", "item",
        "_local_scalar_dense", "arange", "scalar_tensor", "is_pinned",
    }
)  # fmt: skip
"""Operations of ATen that move or make numbers and compute nothing."""


@dataclass(frozen=True, kw_only=True)
class OperationGroup:
    """The operations of one kind in a step."""

    kind: str
    seconds: float
    share: float
    """Of the step's time."""
    calls: int
    flops: float
    """Of matrix products, attention and convolutions; 0 for the others, whose work is moving bytes."""
    bytes: int
    """Allocated by these operations, freed or not."""
    top: tuple[Mapping[str, Any], ...]
    """The operations and shapes that take longest: name, shapes, seconds, calls, flops."""


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """A step's time, shared out among kinds of operations."""

    device: str
    seconds: float
    groups: tuple[OperationGroup, ...]
    """By time, the longest first; the seconds add up to the step's."""

    def lines(self) -> list[str]:
        """A table, with the longest operations of each kind below it."""
        head = f"{'kind':14}{'seconds':>10}{'share':>8}{'calls':>8}{'GFLOP/s':>10}{'MiB':>10}"
        lines = [f"one step on {self.device}, {self.seconds:.3f} s", "", head]
        for group in self.groups:
            rate = group.flops / group.seconds / 1e9 if group.flops and group.seconds else 0.0
            lines.append(
                f"{group.kind:14}{group.seconds:10.4f}{group.share:8.1%}{group.calls:8d}"
                f"{format(rate, '10.1f') if rate else ' ' * 9 + '-'}{group.bytes / 2**20:10.1f}"
            )
        for group in self.groups:
            lines += ["", f"{group.kind}:"] if group.top else []
            for row in group.top:
                rate = row["flops"] / row["seconds"] / 1e9 if row["flops"] and row["seconds"] else 0.0
                suffix = f", {rate:.1f} GFLOP/s" if rate else ""
                lines.append(
                    f"  {row['seconds']:.4f} s  {row['calls']:4d} x {row['name']} {row['shapes']}{suffix}"
                )
        return lines


def operation_kind(names: Sequence[str]) -> str:
    """The kind of an operation, from its name and those of the operations that called it, innermost first."""
    for kind, beginnings in KIND_PREFIXES.items():
        if any(name.startswith(beginnings) for name in names):
            return kind
    name = names[0]
    if not name.startswith("aten::"):
        return "autograd" if name.startswith("autograd::") or "Backward" in name else "other"
    return "movement" if name.removeprefix("aten::") in MOVEMENT else "elementwise"


def operation_flops(name: str, shapes: Sequence[Sequence[int]], values: Sequence[Any]) -> float:
    """Operations of a matrix product, attention or convolution by the shapes of its inputs; 0 for all else.

    `values` are the inputs that are no tensors, by position. An operation that only calls others counts as nothing.
    """
    own = name.removeprefix("aten::")
    offset = {"addmm": 1, "baddbmm": 1, "mm": 0, "bmm": 0, "_scaled_mm": 0, "_int_mm": 0}.get(own)
    if offset is not None and len(shapes) > offset + 1:
        a, b = shapes[offset], shapes[offset + 1]
        return 2.0 * _product(a) * b[-1]
    if own.startswith("_scaled_dot_product") and "_math" not in own:
        if own.endswith("_backward"):
            return float(sdpa_backward_flop_count(*shapes[:4]))
        return float(sdpa_flop_count(*shapes[:3]))
    if own == "convolution_backward":
        slope, x, weight = shapes[:3]
        return 2.0 * conv_flop_count(list(x), list(weight), list(slope))
    if own == "convolution" and len(values) > 5 and not values[6]:
        return float(
            conv_flop_count(list(shapes[0]), list(shapes[1]), _output_shape(shapes[0], shapes[1], values))
        )
    return 0.0


def _output_shape(x: Sequence[int], weight: Sequence[int], values: Sequence[Any]) -> list[int]:
    """The shape of a convolution's output, from stride, padding and dilation."""
    sizes = [
        (n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for n, kernel, stride, pad, dilation in zip(x[2:], weight[2:], *values[3:6], strict=True)
    ]
    return [x[0], weight[0], *sizes]


def _product(values: Iterable[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result


def summarise_step(events: Sequence[Any], device: str) -> StepProfile:
    """The profile of a step from the events of torch.profiler, among which one is called `STEP`."""
    whole = next(event for event in events if event.name == STEP and event.device_type == DeviceType.CPU)
    on_gpu = device == "cuda"
    seconds: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    sizes: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    rows: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(
        lambda: defaultdict(lambda: [0.0, 0, 0.0])
    )
    for event in events:
        if event.device_type != DeviceType.CPU or event is whole or event.name == "[memory]":
            continue
        if not on_gpu and event.thread != whole.thread:
            continue  # what other threads do is hidden behind this one, or waited for in it
        kind = operation_kind(list(_names(event)))
        own_s = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        shapes = event.input_shapes or []
        work = operation_flops(event.name, shapes, event.concrete_inputs or [])
        size = event.self_device_memory_usage if on_gpu else event.self_cpu_memory_usage
        seconds[kind] += own_s
        flops[kind] += work
        sizes[kind] += max(0, size)
        calls[kind] += 1
        row = rows[kind][event.name, str([shape for shape in shapes if shape])]
        row[0], row[1], row[2] = row[0] + own_s, row[1] + 1, row[2] + work
    total_s = whole.cpu_time_total / 1e6
    seconds[REMAINDER[device if on_gpu else "cpu"]] += max(0.0, total_s - sum(seconds.values()))
    groups = [
        OperationGroup(
            kind=kind, seconds=own_s, share=own_s / total_s, calls=calls[kind], flops=flops[kind],
            bytes=sizes[kind], top=tuple(_top(rows[kind])),
        )
        for kind, own_s in sorted(seconds.items(), key=lambda entry: -entry[1])
    ]  # fmt: skip
    return StepProfile(device=device, seconds=total_s, groups=tuple(groups))


def _names(event: Any) -> Iterator[str]:
    """The name of an operation and of those that called it, innermost first."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _top(rows: Mapping[tuple[str, str], list[float]]) -> Iterator[Mapping[str, Any]]:
    for (name, shapes), (own_s, calls, work) in sorted(rows.items(), key=lambda row: -row[1][0])[:TOP_SHAPES]:
        yield {"name": name, "shapes": shapes, "seconds": own_s, "calls": int(calls), "flops": work}


@dataclass
class ProfileTime:
    """What profiling a step takes beside the step."""

    overhead_s: float = 0.0
    """Seconds of starting the profiler and of evaluating it; 0 where the step was not profiled."""


@contextmanager
def profiled_step(training: Training, step: int, first: int) -> Iterator[ProfileTime]:
    """Profile what is done inside, if the run wants it and this is the step: the third after `first`, or the last.

    The first process writes profile.txt, profile.json and profile_trace.json into the run's folder, the last for
    chrome://tracing or ui.perfetto.dev. The numbers computed are the same as without. The time it took is known
    behind the block.
    """
    cost, start_s = ProfileTime(), time.monotonic()
    accelerator, cfg = training.accelerator, training.cfg
    if not (cfg.profile and accelerator.is_main_process and step == min(first + WARMUP, cfg.steps - 1)):
        yield cost
        return
    device = accelerator.device
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    options: dict[str, Any] = {"record_shapes": True, "profile_memory": True, "acc_events": True}
    with profile(activities=activities, **options) as profiler, record_function(STEP):
        step_start_s = time.monotonic()
        yield cost
        synchronize(device)
        step_s = time.monotonic() - step_start_s
    result = summarise_step(profiler.events(), "cuda" if on_gpu else "cpu")
    atomic_write(training.folder / "profile.txt", "\n".join(result.lines()) + "\n")
    write_json(training.folder / "profile.json", asdict(result))
    profiler.export_chrome_trace(str(training.folder / "profile_trace.json"))
    log("\n".join(result.lines()))
    cost.overhead_s = time.monotonic() - start_s - step_s
