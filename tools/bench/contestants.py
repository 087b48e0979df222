"""Ways to train on the same pairs, for the bench of a training step: the published one and ours."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdpo.data.datasets.memory import PairsInMemory
from diffdpo.data.datasets.stream import batches, micro_batches
from diffdpo.mining.values import Pair
from diffdpo.objectives.dpo import DPO
from diffdpo.randomness import generator
from diffdpo.training.checkpointing import CheckpointingConfig
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig
from diffdpo.training.estimate import auxiliary_tensors
from diffdpo.training.loop import train_step
from diffdpo.training.references import FrozenCopy
from diffdpo.training.session import prepare_training
from diffdpo.training.step import Standards, part_outputs, sample_noise, stack_rows
from diffdpo.training.strategy import build_accelerator
from diffdpo.types import Row
from tools.bench_memory import CHANNELS, build, embedding

PAIRS = 4
LONGEST = 4096
RATE = 1e-6
BETA = 100.0
PUBLISHED = "published"
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "checkpointing": {"checkpointing": CheckpointingConfig()},
    "selective": {"checkpointing": CheckpointingConfig("selective")},
    "half": {"checkpointing": CheckpointingConfig(every=2)},
    "split": {"split_backward": True},
    "cached": {"reference": ReferenceConfig(cached_draws=1)},
    "compile": {"compile": True},
}
"""What a training may add to `full-N` or `lora-N`, N examples a micro-batch, after a comma. `cached` has noise of
its own, so its gradients are not compared; behind its first step it finds all errors of the reference."""


@dataclass
class Contestant:
    """A way of training: its step, and what it was measured at."""

    run: Callable[[PairsInMemory, int], None]
    parameters: list[Tensor]
    kinds: Mapping[str, list[Any]]
    optimizer: Any
    seconds: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    difference: float | None = None
    """Relative, of the first step's gradients from the published way's, where the two can be compared."""
    flops: float = 0.0
    peaks: dict[str, float] = field(default_factory=dict)


def draw_pairs(frames: tuple[int, int], number: int, pairs: int = PAIRS) -> PairsInMemory:
    """Pairs of noise whose lengths are log-uniform between two numbers of frames, by a round's number."""
    draws = generator(number, "bench", "lengths")
    low, high = map(math.log, frames)
    songs = [f"{kind}{i}" for i in range(pairs) for kind in ("w", "l")]
    lengths = {s: round(math.exp(low + (high - low) * float(torch.rand((), generator=draws)))) for s in songs}
    return PairsInMemory(
        pairs=[
            Pair(prompt_id=f"p{i}", group=f"p{i}", winner=f"w{i}", loser=f"l{i}", rule="r", margins={})
            for i in range(pairs)
        ],
        latents={s: torch.randn(n, CHANNELS, generator=draws) for s, n in lengths.items()},
        rows={s: Row(embedding=embedding(), frames=n) for s, n in lengths.items()},
        frames_per_second=21.5,
    )


def build_published(width: int, depth: int) -> Contestant:
    """Two full models, one forward pass each of all songs, padded to the longest."""
    model, cfg, objective = build_exact(width, depth), TrainConfig(trackers=[]), DPO(beta=BETA)
    network, reference = model.network.train(), FrozenCopy.take(model.network, torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)

    def run(pairs: PairsInMemory, step: int) -> None:
        plan = micro_batches(step, global_batch=PAIRS, per_device=PAIRS, rank=0, world=1)
        (batch,) = batches(pairs, iter(plan), seed=0, workers=0)
        noise = sample_noise(batch, cfg, 0, model.spec.times)
        standards = Standards(reference=reference)
        parts = [stack_rows(model, batch, noise)]
        values = part_outputs(model, network, batch, objective, noise, parts, standards)
        objective(values).loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    kinds = {"weights": list(network.parameters()), "reference": list(reference.network.parameters())}
    return Contestant(run, list(network.parameters()), kinds, optimizer)


def build_ours(width: int, depth: int, name: str, folder: str, pairs: int = PAIRS) -> Contestant:
    """A training by its name, such as `lora-2,checkpointing`."""
    kind, _, addition = name.partition(",")
    method, _, per_device = kind.partition("-")
    cfg = TrainConfig(
        global_batch=pairs, per_device=int(per_device), learning_rate=RATE, trackers=[],
        lora=LoraConfig(rank=16) if method == "lora" else None, **SETTINGS[addition],
    )  # fmt: skip
    model = build_exact(width, depth)
    training, _ = prepare_training(
        model, draw_pairs((8, 8), 0), DPO(beta=BETA), cfg, out=Path(folder), seed=0,
        accelerator=build_accelerator(cfg, folder), name="dpo",
    )  # fmt: skip

    def run(songs: PairsInMemory, step: int) -> None:
        plan = micro_batches(step, global_batch=cfg.global_batch, per_device=cfg.per_device, rank=0, world=1)
        training.accelerator.gradient_accumulation_steps = pairs // cfg.per_device  # one number a process
        train_step(training, step, batches(songs, iter(plan), seed=0, workers=0), {})

    network = training.accelerator.unwrap_model(training.policy)
    kinds = {"weights": list(network.parameters()), "reference": auxiliary_tensors(training.reference)}
    parameters = [p for p in network.parameters() if p.requires_grad]
    return Contestant(run, parameters, kinds, training.optimizer.optimizer)


def build_exact(width: int, depth: int) -> Any:
    """The network with the window that hides padding."""
    model = build(width, depth, LONGEST, "cpu")
    model.spec = type(model.spec)(**{**vars(model.spec), "window": "exact"})
    return model
