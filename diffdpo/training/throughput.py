"""The speed of a training: frames and examples a second, waits for data, memory, share of the attainable rate.

Nothing here reads or moves a number of the training: batches pass through unchanged.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from diffdpo.devices import allocated_peak, resident_peak
from diffdpo.models.base import SongModel
from diffdpo.training.config import TrainConfig
from diffdpo.training.flops import FlopFormula, matmul_rate, matrix_shapes
from diffdpo.training.references import ErrorCache
from diffdpo.training.setup import reference_kind
from diffdpo.training.sharding import GIB
from diffdpo.training.step import noise_keys
from diffdpo.types import Batch, Objective

DATA_WAIT = "data wait"
"""Name of the time in which the loop waits for a batch, in profiles."""
TIMINGS = (
    "seconds", "frames_per_s", "examples_per_s", "data_wait_s", "remaining_s", "matmul_share", "memory_gib",
    "resident_gib", "profiled",
)  # fmt: skip
"""Metrics of a step that depend on clock and machine: they differ between two runs of one configuration."""
MATMUL_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class AuxiliaryPasses:
    """Forward passes of a step beside the policy's own, as counts of passes a song."""

    reference: int
    """Passes of the reference that are left out where its errors are cached: 1 or 0."""
    auxiliary: int
    """Passes of the old policy and of a slider's conditions."""
    has_adapter: bool
    """Whether these passes go through adapters, as those of a copy of a network with adapters do."""

    @staticmethod
    def of(objective: Objective, cfg: TrainConfig) -> "AuxiliaryPasses":
        """The passes that an objective needs. An old policy that is the reference runs once."""
        needs = objective.needs
        is_same = "reference" in needs and cfg.old == cfg.reference
        auxiliary = 2 * ("contrast" in needs) + ("old" in needs and not is_same)
        kind = reference_kind("reference", cfg.reference, cfg.lora)
        return AuxiliaryPasses(int("reference" in needs), auxiliary, kind != "adapter_off")


@dataclass
class StepFlops:
    """Operations of the valid frames of batches: forward and backward of the policy, forward of the others."""

    formula: FlopFormula
    passes: AuxiliaryPasses
    dtype: torch.dtype
    rate: float = 0.0
    """The attainable rate, measured with the first batch."""

    def batch(self, batch: Batch, *, is_cached: bool = False) -> float:
        """Operations of a batch, song by song; `is_cached`: the reference's errors are there already."""
        total = 0.0
        songs = zip(batch.rows, batch.frames.tolist(), strict=True)
        for row, frames in ((r, n) for rows, lengths in songs for r, n in zip(rows, lengths, strict=True)):
            song = self.formula.song(row, frames)
            auxiliary = song.forward if self.passes.has_adapter else song.bare
            count = self.passes.auxiliary + (0 if is_cached else self.passes.reference)
            total += song.forward + song.backward + count * auxiliary
        return total

    def measure_rate(self, batch: Batch, device: torch.device) -> None:
        """Measure what the device attains on the network's own shapes, at the length of this batch's songs."""
        if not self.rate:
            frames = max(1, int(batch.frames.sum()))
            self.rate = matmul_rate(matrix_shapes(self.formula.network), frames, self.dtype, device)


@dataclass
class ThroughputMeter:
    """What passes through a step: `watch` the stream of batches, then `measure` after each step."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    flops: StepFlops | None = None
    """None leaves `matmul_share` out."""
    is_cached: Callable[[Batch], bool] = lambda batch: False
    """Whether the reference's errors of a batch are cached."""
    group: int = 1
    """Processes that share each song."""
    clock: Callable[[], float] = time.perf_counter
    wait_s: float = 0.0
    frames: int = 0
    examples: int = 0
    operations: float = 0.0
    setup_s: float = 0.0
    """Time that counting and measuring took since the last step."""

    def watch(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of a stream, whose frames are counted, and how long each let the loop wait."""
        while True:
            start_s = self.clock()
            with torch.profiler.record_function(DATA_WAIT):
                batch = next(stream, None)
            self.wait_s += self.clock() - start_s
            if batch is None:
                return
            self.frames += int(batch.frames.sum())
            self.examples += len(batch.positions)
            if self.flops is not None:
                start_s = self.clock()
                self.flops.measure_rate(batch, self.device)
                self.operations += self.flops.batch(batch, is_cached=self.is_cached(batch))
                self.setup_s += self.clock() - start_s
            yield batch

    def measure(
        self, seconds: float, processes: int = 1, remaining_s: float | None = None
    ) -> dict[str, float]:
        """The metrics of the step that took `seconds`; the next one begins.

        Frames and examples of this process stand for each of `processes`, or of their groups that share songs;
        share and memory are this process's.
        What the meter itself measured before the first step is left out of the time.
        """
        seconds = max(seconds - self.setup_s, 1e-9)
        groups = processes // self.group
        row = {
            "seconds": seconds,
            "frames_per_s": groups * self.frames / seconds,
            "examples_per_s": groups * self.examples / seconds,
            "data_wait_s": self.wait_s,
            "resident_gib": resident_peak() / GIB,
        }
        if remaining_s is not None:
            row["remaining_s"] = remaining_s
        if (peak := allocated_peak(self.device)) is not None:
            row["memory_gib"] = peak / GIB
        if self.flops is not None and self.flops.rate > 0:
            row["matmul_share"] = self.operations / self.group / seconds / self.flops.rate
        self.wait_s, self.frames, self.examples, self.operations, self.setup_s = 0.0, 0, 0, 0.0, 0.0
        return row


def build_meter(
    model: SongModel, objective: Objective, cfg: TrainConfig, device: torch.device
) -> ThroughputMeter:
    """The meter of a run, with the share of the attainable rate where it is to be logged.

    To be built before the network is quantised, sharded or compiled.
    """
    has_share = device.type == "cuda" if cfg.matmul_share is None else cfg.matmul_share
    if not has_share:
        return ThroughputMeter(device, group=cfg.context_parallel)
    flops = StepFlops(
        FlopFormula.of(model, cfg.lora), AuxiliaryPasses.of(objective, cfg), MATMUL_DTYPES[cfg.precision]
    )
    return ThroughputMeter(device, flops, group=cfg.context_parallel)


def cache_test(cfg: TrainConfig, cache: ErrorCache | None) -> Callable[[Batch], bool]:
    """Whether the reference's errors of a batch are cached."""

    def is_cached(batch: Batch) -> bool:
        return cache is not None and all(str(key) in cache.errors for key in noise_keys(batch, cfg))

    return is_cached


def step_note(row: Mapping[str, Any]) -> str:
    """The loss of a step, frames a second and the share of the attainable rate as text, for the progress line."""
    speed = row["frames_per_s"]
    parts = [
        f"loss {row['loss']:.4f}" if "loss" in row else "spike",
        f"{speed:.0f} frames/s" if speed >= 100 else f"{speed:.2g} frames/s",
    ]
    if "matmul_share" in row:
        parts.append(f"{row['matmul_share']:.0%} of matmul")
    return ", ".join(parts)
