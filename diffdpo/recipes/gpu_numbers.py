"""What `gpu-check` measures on: networks and songs of noise; and whether a device computes what the CPU computes.

Networks are DiffRhythm's with random weights: time and memory do not depend on what a network learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.data.datasets.stream import batch_to
from diffdpo.encoders import muq
from diffdpo.mining.values import Pair
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.lines import line_tensors
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.objectives.dpo import DPO
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import Request
from diffdpo.sampling.sampler import sample_batch
from diffdpo.training.config import TrainConfig
from diffdpo.training.references import FrozenCopy
from diffdpo.training.step import outputs, sample_noise
from diffdpo.types import Embedding, Row

CHANNELS = 64
FRAMES_PER_SECOND = 21.5
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "fp32": {"forward": 1e-4, "gradient": 1e-3, "sampler": 1e-3},
    "bf16": {"forward": 3e-2, "gradient": 3e-1, "sampler": 1e-1},
}
"""Largest relative differences (of norms) from the CPU's fp32 results that are accepted. The gradient of DPO is a
difference between two songs', so that rounding weighs more in it."""


@dataclass(frozen=True)
class BenchSizes:
    """Sizes of the networks that are measured."""

    width: int
    depth: int
    frames: tuple[int, int]
    """Frames of a short song, and of a long one."""
    number_width: int
    """Width of the network whose numbers are compared."""
    steps: int
    """Solver steps of the sampler."""
    encoder: muq.MuQConfig
    seconds: float
    """Time that is spent on measuring each thing, after its warm-up."""
    clip_s: float


FULL = BenchSizes(2048, 16, (2048, 6144), 256, 32, muq.MuQConfig(), 6.0, 95.0)
SMALL = BenchSizes(
    64, 2, (32, 96), 64, 2,
    muq.MuQConfig(dim=32, depth=7, heads=4, hidden=48, kernel_size=7, conv_dim=6), 0.0, 12.0,
)  # fmt: skip
"""Sizes at which every part runs on a CPU in a second."""


def random_model(width: int, depth: int, frames: int, device: str) -> DiffRhythm:
    """A DiffRhythm of random weights on a device; width 2048 and depth 16 are the published sizes."""
    torch.manual_seed(0)
    with torch.device(device):
        network = DiffRhythmTransformer(
            dim=width, depth=depth, num_attention_heads=max(1, width // 64), max_frames=frames
        )
    spec = LatentSpec(
        channels=CHANNELS, frames_per_second=FRAMES_PER_SECOND, sample_rate=44100, max_frames=frames
    )
    return DiffRhythm(network=network, spec=spec, encoders=None)


def instrumental() -> Embedding:
    """The embedding of a prompt without lyrics."""
    return {"style": torch.zeros(512), "start": torch.tensor(0.0), **line_tensors(())}


def random_pair(frames: int) -> PairsInMemory:
    """One pair of songs of noise."""
    generator = torch.Generator().manual_seed(1)
    row = Row(embedding=instrumental(), frames=frames)
    return PairsInMemory(
        pairs=[Pair(prompt_id="p", group="p", winner="a", loser="b", rule="r", margins={})],
        latents={name: torch.randn(frames, CHANNELS, generator=generator) for name in "ab"},
        rows=dict.fromkeys("ab", row),
        frames_per_second=FRAMES_PER_SECOND,
    )


def relative_difference(actual: Tensor, target: Tensor) -> float:
    """The norm of a difference over the norm of the target."""
    difference = actual.double().cpu() - target.double().cpu()
    return float(difference.norm() / target.double().norm())


def numbers_part(sizes: BenchSizes, device: torch.device, precision: str) -> dict[str, Any]:
    """Relative differences from the CPU in fp32: velocity, gradient of DPO, and a sampled song."""
    torch.backends.cudnn.allow_tf32 = False  # convolutions would be rounded to 10 bits
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu = _numbers(sizes, torch.device("cpu"), "fp32")
    results = _numbers(sizes, device, precision)
    row: dict[str, Any] = {
        f"{name}_difference": relative_difference(results[name], cpu[name]) for name in cpu
    }
    excess = [n for n, bound in BOUNDS[precision].items() if not row[f"{n}_difference"] <= bound]
    return {**row, "excess": excess}


def _numbers(sizes: BenchSizes, device: torch.device, precision: str) -> dict[str, Tensor]:
    """A velocity, the gradient of DPO against a reference a little apart, and a song, all from fixed seeds."""
    frames = sizes.frames[0] if sizes is SMALL else 512
    model = random_model(sizes.number_width, 2, frames, "cpu")
    generator = torch.Generator().manual_seed(2)
    for parameter in model.network.parameters():  # layers that begin at zero would hide all others
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    reference = FrozenCopy.take(model.network, device)
    for parameter in model.network.parameters():
        parameter.data += 0.002 * torch.randn(parameter.shape, generator=generator)
    model.network.to(device)
    examples = random_pair(frames)
    batch = examples.collate([examples.example(0, 0)], [0])
    cfg = TrainConfig(global_batch=1, per_device=1, trackers=[])
    noise = sample_noise(batch, cfg, seed=0)
    tensors = {name: getattr(noise, name).to(device) for name in ("t", "noise", "span")}
    noise = replace(noise, **tensors)
    objective = DPO(beta=10.0)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        values = outputs(model, model.network, reference, batch_to(batch, device), objective, noise)
    objective(values).loss.mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None])
    settings = SamplingConfig(steps=4, guidance_scale=2.0, precision="bf16" if precision == "bf16" else "no")
    request = Request(sample_id="s", row=batch.rows[0][0])
    (song,) = sample_batch(model, [request], settings, seed=0)
    assert values.policy is not None
    x = torch.randn(2, frames, CHANNELS, generator=torch.Generator().manual_seed(3)).to(device)
    condition = {k: v.to(device) for k, v in model.condition(batch.rows[0], frames).items()}
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        ends = torch.full((2,), frames, device=device)
        velocity = model.velocity(model.network, x, torch.full((2,), 0.5, device=device), condition, ends)
    return {"forward": velocity, "gradient": gradient, "sampler": song}
