"""Memory of a training step, counted without allocating it: the step runs on fake tensors, which have sizes only.

What is counted is what `LiveBytes` measures in a real step. Workspaces inside operations, the allocator's rounding
and the CUDA context, about half a gigabyte, are not in it.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diffdpo.data.datasets.stream import accumulation
from diffdpo.errors import ConfigError
from diffdpo.models.base import SongModel
from diffdpo.training.checkpointing import enable_checkpointing
from diffdpo.training.config import TrainConfig, checkpointing_of
from diffdpo.training.live_bytes import LiveBytes, count_gradients
from diffdpo.training.lora import add_lora
from diffdpo.training.optimizer import UPDATE_COPIES, check_weight_precision, moment_bytes
from diffdpo.training.pass_plan import GPU_FRAMES, plan_passes
from diffdpo.training.quantize import block_layers, frozen_text, quantize_layers, require_base
from diffdpo.training.references import AdapterOff, FrozenCopy, MovingCopy
from diffdpo.training.setup import DTYPES, reference_kind, trainable
from diffdpo.training.sharding import Deployment, MemoryEstimate, largest_block_bytes, shard_memory
from diffdpo.training.step import (
    AuxiliaryPolicy,
    StepNoise,
    StepRows,
    auxiliary_velocities,
    measure_outputs,
    row_velocity,
    sample_noise,
    stack_rows,
)
from diffdpo.training.strategy import check_strategy
from diffdpo.types import Batch, Embedding, Objective, Row

MEMBERS = {"song": 1, "rated": 1, "contrast": 1, "pair": 2}
"""Songs of an example, by kind of batch; a group has as many as the user says."""


def estimate_memory(
    model: SongModel,
    embedding: Embedding,
    objective: Objective,
    cfg: TrainConfig,
    frames: int,
    deployment: Deployment | None = None,
) -> MemoryEstimate:
    """Memory of a training step on songs of `frames` frames. The weights may be on the meta device."""
    deployment = deployment or Deployment()
    if cfg.base == "nf4":
        raise ConfigError(
            "train.base=nf4: bitsandbytes quantises on a GPU only, so there is no estimate; try int8"
        )
    if cfg.base != "full" and cfg.lora is None:
        raise ConfigError(f"train.base={cfg.base}: {frozen_text(cfg)}")
    check_weight_precision(cfg)
    check_strategy(cfg, deployment.strategy, objective)
    members = MEMBERS.get(objective.batch_kind, deployment.group_size)
    passes, is_split = estimate_passes(cfg, members, frames)
    examples = len(passes[0])
    batch = empty_batch(embedding, examples, members, frames, model.spec.channels)
    if "contrast" in objective.needs:
        batch = replace(batch, plus_rows=batch.rows, minus_rows=batch.rows, scale=torch.ones(examples))
    noise = sample_noise(batch, cfg, seed=0, times=model.spec.times)
    rows = stack_rows(model, batch, noise)
    parts = [rows.select(index) for index in torch.arange(len(rows.t)).split(1)] if is_split else []
    adapted = hollow_copy(model.network, "meta")
    if cfg.lora is not None:
        add_lora(adapted, cfg.lora, model.lora_targets, seed=0)
    else:
        adapted.requires_grad_(True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        network = hollow_copy(adapted, "cpu", torch.bfloat16 if cfg.weights != "fp32" else None)
        if cfg.base != "full":
            require_base(cfg)
            quantize_layers(network, block_layers(network), cfg.base)
        reference, old = _prepare(network, cfg, objective)
        fake = fake_rows(mode, rows)
        step = _FakeStep(model, network, objective, cfg, mode, reference, old)
        rounds = accumulation(cfg.global_batch, cfg.per_device, deployment.processes)
        count = LiveBytes()
        count.add([*network.parameters(), *network.buffers()], "weights")
        count.add([auxiliary_tensors(auxiliary) for auxiliary in (reference, old)], "reference")
        hooks = count_gradients(count, network.parameters())
        with count:
            for _ in range(min(rounds * len(passes), 2)):  # the second begins with the gradients of the first
                step.run(batch, noise, fake, parts)
        for hook in hooks:
            hook.remove()
    weights = trainable(network)
    largest = 4 * max(p.numel() for p in weights)
    optimizer = moment_bytes(weights, cfg)
    update = count.peaks["weights"] + count.peaks["gradients"] + count.peaks.get("reference", 0)
    update += math.ceil(UPDATE_COPIES[cfg.optimizer if cfg.weights == "fp32" else cfg.weights] * largest)
    whole = MemoryEstimate(
        weights=count.peaks["weights"],
        gradients=count.peaks["gradients"],
        optimizer=optimizer,
        reference=count.peaks.get("reference", 0),
        activations=count.peaks["activations"],
        peak=max(count.peak, update) + optimizer,
    )
    return shard_memory(whole, deployment, largest_block_bytes(network))


def estimate_passes(cfg: TrainConfig, members: int, frames: int) -> tuple[list[list[int]], bool]:
    """The passes of a micro-batch on a GPU, and whether songs go through backward one by one."""
    budget = cfg.frames_per_device or GPU_FRAMES
    is_over = bool(cfg.frames_per_device) and members > 1 and members * frames > budget
    return plan_passes([[frames] * members] * cfg.per_device, budget), cfg.split_backward or is_over


def empty_batch(embedding: Embedding, examples: int, members: int, frames: int, channels: int) -> Batch:
    """A batch of songs of one length and one prompt."""
    row = Row(embedding=embedding, frames=frames)
    return Batch(
        latents=torch.zeros(examples, members, frames, channels),
        frames=torch.full((examples, members), frames),
        rows=((row,) * members,) * examples,
        positions=tuple(range(examples)),
        ids=tuple(map(str, range(examples))),
        visits=(0,) * examples,
        weight=torch.ones(examples),
        score=torch.linspace(-1, 1, examples * members).view(examples, members),
    )


def hollow_copy(network: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """A copy of the network with empty tensors of a device for its weights and buffers, of the same sizes.

    Numbers are of the precision they have, or of `dtype`. On the CPU inside FakeTensorMode they take no memory.
    """

    def empty(tensor: Tensor) -> Tensor:
        own_dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=own_dtype, device=device)

    copies: dict[int, Any] = {
        id(p): torch.nn.Parameter(empty(p), requires_grad=p.requires_grad) for p in network.parameters()
    }
    copies |= {id(buffer): empty(buffer) for buffer in network.buffers()}
    return copy.deepcopy(network, copies)


def fake_rows(mode: FakeTensorMode, rows: StepRows) -> StepRows:
    """Rows without memory. The numbers of frames stay what they are: networks read them."""

    def fake(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device="cpu") if value.numel() > 1 else value

    condition = {name: fake(value) for name, value in rows.condition.items()}
    reference_condition = condition
    if rows.reference_condition is not rows.condition:
        reference_condition = {name: fake(value) for name, value in rows.reference_condition.items()}
    return replace(
        rows,
        x=fake(rows.x),
        t=fake(rows.t),
        target=fake(rows.target),
        mask=fake(rows.mask),
        condition=condition,
        reference_condition=reference_condition,
        contrast={
            name: {key: fake(value) for key, value in contrast.items()}
            for name, contrast in rows.contrast.items()
        },
        scale=None if rows.scale is None else fake(rows.scale),
    )


def _prepare(
    network: Any, cfg: TrainConfig, objective: Objective
) -> tuple[AuxiliaryPolicy | None, AuxiliaryPolicy | None]:
    """What a run does with a network before its first step: checkpointing, auxiliary policies."""
    enable_checkpointing(network, checkpointing_of(cfg))
    network.train()
    auxiliaries: list[AuxiliaryPolicy | None] = []
    for name, settings in (("reference", cfg.reference), ("old", cfg.old)):
        if name not in objective.needs:
            auxiliaries.append(None)
            continue
        if name == "old" and settings == cfg.reference and auxiliaries[0] is not None:
            auxiliaries.append(auxiliaries[0])
            continue
        kind, cpu = reference_kind(name, settings, cfg.lora), torch.device("cpu")
        if kind == "adapter_off":
            auxiliaries.append(AdapterOff(lambda module: module))
        elif kind == "frozen_copy":
            frozen_network = hollow_copy(network, "cpu", DTYPES[settings.dtype]).requires_grad_(False).eval()
            auxiliaries.append(FrozenCopy(frozen_network, cpu))
        else:
            auxiliaries.append(MovingCopy.start(network, cpu, lambda module: module))
    return auxiliaries[0], auxiliaries[1]


def auxiliary_tensors(auxiliary: AuxiliaryPolicy | None) -> list[Tensor]:
    """The tensors that an auxiliary policy holds beside the policy's own."""
    if isinstance(auxiliary, FrozenCopy):
        return [*auxiliary.network.parameters(), *auxiliary.network.buffers()]
    return list(auxiliary.weights.values()) if isinstance(auxiliary, MovingCopy) else []


@dataclass(frozen=True)
class _FakeStep:
    """A micro-batch of training on fake tensors."""

    model: SongModel
    network: Any
    objective: Objective
    cfg: TrainConfig
    mode: FakeTensorMode
    reference: AuxiliaryPolicy | None
    old: AuxiliaryPolicy | None

    def run(self, batch: Batch, noise: StepNoise, rows: StepRows, parts: list[StepRows]) -> None:
        """Forward and backward. `rows` are fake; `parts` are the same rows one by one, still to be made fake."""
        with self._autocast():
            v = self._auxiliary(rows, parts)
            if parts:
                with torch.no_grad():
                    others = [self._velocity(part) for part in parts[1:]]
                own_velocity = self._velocity(parts[0])
                velocity = torch.cat([own_velocity.detach(), *others]).requires_grad_()
            else:
                velocity = self._velocity(None, rows)
            v["policy"] = velocity
            values = measure_outputs(batch, noise, [rows], v, self.objective)
        loss = (self.objective(values).loss * batch.weight).mean()
        if not parts:
            loss.backward()
            return
        (slopes,) = torch.autograd.grad(loss, velocity)
        del values, v, velocity, others, loss
        first, *rest = slopes.split(1)
        (own_velocity * first).sum().backward()
        for part, slope in zip(parts[1:], rest, strict=True):
            with self._autocast():
                own_velocity = self._velocity(part)
            (own_velocity * slope).sum().backward()

    def _auxiliary(self, rows: StepRows, parts: list[StepRows]) -> dict[str, Tensor]:
        selections = [fake_rows(self.mode, part) for part in parts] or [rows]
        velocities = [
            auxiliary_velocities(
                self.model, self.network, self.reference, [part], self.objective,
                length=part.x.shape[1], old=self.old,
            )
            for part in selections
        ]  # fmt: skip
        return {name: torch.cat([v[name] for v in velocities]) for name in velocities[0]}

    def _velocity(self, part: StepRows | None, rows: StepRows | None = None) -> Tensor:
        fake = rows if part is None else fake_rows(self.mode, part)
        assert fake is not None
        return row_velocity(self.model, self.network, fake).float()

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.cfg.precision]
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            yield
