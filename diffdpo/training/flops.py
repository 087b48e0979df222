"""Floating-point operations of a training step, and the rate of matrix products that a device attains.

The operations of the valid frames are counted: those of each song alone, without padding and without what
gradient checkpointing computes twice. They are counted on fake tensors, which have sizes only, at a few lengths; a
network of attention, linear layers and convolutions takes a + b n + c n² for n frames, which gives all others.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from diffdpo.devices import synchronize, unchanged_randomness
from diffdpo.models.base import SongModel
from diffdpo.training.config import LoraConfig
from diffdpo.training.estimate import hollow_copy
from diffdpo.training.lora import add_lora
from diffdpo.types import Row

PROBES = (1, 2, 4)
"""Parts of a song's length at which operations are counted; a quadratic goes through three."""
MATRIX_SHAPES = 4
"""So many of the largest shapes of a network's linear layers are timed."""
MATRIX_FLOPS = {"cpu": 4e9, "cuda": 4e12}
"""Operations of the largest matrix product that is timed, so that timing takes a second or two at most."""
MATRIX_SECONDS = 0.3
"""Time that is spent on each shape, at most; the first product is not counted."""


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _cpu_attention_backward(slope: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(slope, query, key, value))


def _convolution_backward(slope: Any, x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    transposed, output_mask = bool(args[4]), args[7]
    products = int(output_mask[0]) + int(output_mask[1])  # by the input, by the weight
    return products * int(conv_flop_count(list(x), list(weight), list(slope), transposed))


FORMULAS = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}
"""Formulas for attention on the CPU, which torch's counter lacks, and for convolutions backward, of which it counts
the gradient by a grouped weight as if there were one group."""


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of a call by torch's counter: matrix products, attention and convolutions."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        work()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class SongFlops:
    """Operations of one song in a step, by network pass."""

    forward: float
    """Forward through the policy."""
    backward: float
    """Backward through it: for adapters the gradients by frozen weights are not computed."""
    bare: float
    """Forward with the adapters off; the same as `forward` where there are none."""


@dataclass
class FlopFormula:
    """Operations of a song as a function of its length, fitted to counts at the first song's length and its parts.

    `network` holds sizes only: a copy on the meta device, made before anything is done to the model's own.
    """

    model: SongModel
    network: nn.Module
    has_adapters: bool
    probes: tuple[int, ...] = PROBES
    """(1,) counts once, where all songs are of one length."""
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    """Coefficients of the fitted quadratics by name of the pass, once a song was seen."""

    @staticmethod
    def of(model: SongModel, lora: LoraConfig | None) -> "FlopFormula":
        """The formula of a model's network as it is trained: with adapters, or as a whole."""
        network = hollow_copy(model.network, "meta", torch.float32)
        if lora is None:
            network.requires_grad_(True)
        else:
            add_lora(network, lora, model.lora_targets, seed=0)
        return FlopFormula(model, network, lora is not None)

    def song(self, row: Row, frames: int) -> SongFlops:
        """Operations of a song of `frames` frames; `row`, its condition, counts the first time only."""
        if not self.curves:
            self._fit(row, frames)
        return SongFlops(**{name: float(np.polyval(curve, frames)) for name, curve in self.curves.items()})

    def _fit(self, row: Row, frames: int) -> None:
        multiple = self.model.spec.multiple
        lengths = sorted({max(1, frames // (part * multiple)) * multiple for part in self.probes})
        counts = [self._count(row, length) for length in lengths]
        for name in ("forward", "backward", "bare"):
            values = np.array([getattr(count, name) for count in counts], float)
            self.curves[name] = np.polyfit(np.array(lengths, float), values, len(lengths) - 1)

    def _count(self, row: Row, frames: int) -> SongFlops:
        """Operations at one length, counted."""
        condition = self.model.condition([replace(row, frames=frames)], frames)
        with unchanged_randomness(torch.device("cpu")), FakeTensorMode(allow_non_fake_inputs=True):
            network: Any = hollow_copy(self.network, "cpu").train()
            network.gradient_checkpointing = False
            fake = {name: _fake(value) for name, value in condition.items()}
            x = torch.empty(1, frames, self.model.spec.channels)
            outputs: list[Tensor] = []

            def forward() -> None:
                t, ends = torch.full((1,), 0.5), torch.tensor([frames])
                outputs.append(self.model.velocity(network, x, t, fake, ends))

            passes = [count_flops(forward), count_flops(lambda: outputs[0].float().sum().backward())]
            if not self.has_adapters:
                return SongFlops(passes[0], passes[1], passes[0])
            network.disable_adapters()
            with torch.no_grad():
                return SongFlops(passes[0], passes[1], count_flops(forward))


def _fake(value: Tensor) -> Tensor:
    """A tensor of the same size; one of a single number is kept, since networks may read it."""
    return torch.empty(value.shape, dtype=value.dtype, device="cpu") if value.numel() > 1 else value


def matrix_shapes(network: nn.Module) -> list[tuple[int, int]]:
    """The largest distinct (inputs, outputs) of a network's linear layers, by their product."""
    shapes = {(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)}
    return sorted(shapes, key=lambda shape: shape[0] * shape[1], reverse=True)[:MATRIX_SHAPES]


def matmul_rate(
    shapes: Sequence[tuple[int, int]],
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    seconds: float = MATRIX_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The best rate of `torch.mm` over matrix shapes (inputs, outputs) on `rows` frames, in operations a second.

    This is what the device attains, at this number of threads; its data sheet says more. Rows are limited so that a
    product has at most `MATRIX_FLOPS`. 0 for no shapes.
    """
    best, limit = 0.0, MATRIX_FLOPS.get(device.type, MATRIX_FLOPS["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    for inputs, outputs in shapes:
        count = max(1, min(rows, int(limit / (2 * inputs * outputs))))
        a = torch.randn(count, inputs, device=device, generator=generator).to(dtype)
        b = torch.randn(inputs, outputs, device=device, generator=generator).to(dtype)
        best = max(best, 2 * count * inputs * outputs / _best_seconds(a, b, device, seconds, clock))
    return best


def _best_seconds(
    a: Tensor, b: Tensor, device: torch.device, limit_s: float, clock: Callable[[], float]
) -> float:
    """The shortest time of a product: batches of products, so that a clock of microseconds suffices."""
    torch.mm(a, b)
    synchronize(device)
    best, repeats, begin_s = float("inf"), 1, clock()
    while True:
        start_s = clock()
        for _ in range(repeats):
            torch.mm(a, b)
        synchronize(device)
        stop_s = clock()
        elapsed_s = max(stop_s - start_s, 1e-9)
        best = min(best, elapsed_s / repeats)
        if stop_s - begin_s >= limit_s or elapsed_s >= limit_s / 3:
            return best
        if elapsed_s < limit_s / 20:
            repeats *= 2
