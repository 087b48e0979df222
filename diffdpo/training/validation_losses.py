"""Losses on held-out examples, at fixed times and noises, so that two validations differ by the weights alone.

Batches and draws are the same whatever the number of processes; processes share the passes, and every number is the
mean over all examples and draws of what one process would have computed.
"""

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from diffdpo.data.datasets.stream import Examples, batch_to
from diffdpo.models.base import LatentSpec
from diffdpo.randomness import draw_noise
from diffdpo.training.references import AdapterOff, FrozenCopy
from diffdpo.training.row_scale import scale_rows
from diffdpo.training.run import Training
from diffdpo.training.step import StepNoise, outputs
from diffdpo.training.strategy import strategy_of
from diffdpo.training.validation_config import ValidationConfig
from diffdpo.types import Batch, ObjectiveState

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which losses are measured, unless the configuration or the network says otherwise."""
Pass = tuple[int, int, int]
"""One forward pass: number of the batch, of the time, and of the noise."""
Columns = Mapping[str, Sequence[float]]
"""Metrics of one pass, a number an example."""
POLICY, REFERENCE = "_policy", "_reference"
"""Columns with the winners' errors, which the winner error ratio is made of."""


def validation_times(cfg: ValidationConfig, spec: LatentSpec) -> tuple[float, ...]:
    """The times of validation: the configuration's, else a few-step network's own, else `TIMES`."""
    if cfg.times:
        return tuple(cfg.times)
    return TIMES if spec.times is None else tuple(t for t in spec.times if t > 0)


def measure_losses(
    training: Training,
    examples: Examples,
    cfg: ValidationConfig,
    objective_state: ObjectiveState,
    cache: MutableMapping[Pass, Tensor],
) -> dict[str, float]:
    """Loss and metrics of the objective on all examples, and for pairs the winners' error over the reference's.

    `cache` holds the errors of a reference that does not move. The same on all processes.
    """
    times = validation_times(cfg, training.model.spec)
    rows: dict[Pass, Columns] = {}
    for key in _own_passes(training, list_passes(len(examples), cfg, times)):
        rows[key] = _measure(training, examples, cfg, times, key, objective_state, cache)
    by_pass = {key: columns for part in gather_object([rows]) for key, columns in part.items()}
    return mean_columns([by_pass[key] for key in sorted(by_pass)])


def list_passes(count: int, cfg: ValidationConfig, times: Sequence[float]) -> list[Pass]:
    """All forward passes over so many examples."""
    batches = -(-count // cfg.batch)
    return [(b, t, d) for b in range(batches) for t in range(len(times)) for d in range(cfg.draws)]


def _own_passes(training: Training, keys: Sequence[Pass]) -> Iterator[Pass]:
    """The passes of this process. Sharded weights (ZeRO-3, FSDP2) are gathered layer by layer by all processes
    together, so that all of them do all passes."""
    accelerator = training.accelerator
    if strategy_of(accelerator).shards_weights:
        return iter(keys)
    return iter(keys[accelerator.process_index :: accelerator.num_processes])


def _measure(
    training: Training,
    examples: Examples,
    cfg: ValidationConfig,
    times: Sequence[float],
    key: Pass,
    objective_state: ObjectiveState,
    cache: MutableMapping[Pass, Tensor],
) -> Columns:
    """The metrics of one pass."""
    number, time, draw = key
    indices = range(number * cfg.batch, min(len(examples), (number + 1) * cfg.batch))
    items = [examples.example(index, index) for index in indices]
    batch = batch_to(examples.collate(items, list(indices)), training.accelerator.device)
    noise = fixed_noise(batch, times[time], cfg.seed, f"validation-{time}-{draw}")
    cached = cache.get(key)
    device = batch.latents.device
    bare = training.accelerator.unwrap_model(training.policy)
    with torch.no_grad(), training.accelerator.autocast():
        values = outputs(
            training.model, bare, training.reference, batch, training.objective, noise,
            old=training.old, cached=None if cached is None else cached.to(device),
        )  # fmt: skip
        result = training.objective(replace(values, state=objective_state))
    if batch.scale is not None:
        scale_rows(bare, None)
    if values.reference is not None and _is_fixed(training):
        cache[key] = values.reference.cpu()
    columns = {"loss": result.loss, **result.metrics}
    if training.objective.batch_kind == "pair" and values.reference is not None:
        columns |= {POLICY: values.policy[:, 0], REFERENCE: values.reference[:, 0]}
    return {name: column.cpu().tolist() for name, column in columns.items()}


def fixed_noise(batch: Batch, t: float, seed: int, purpose: str) -> StepNoise:
    """One time and a noise for each example, by its name; nothing is dropped, and all frames count."""
    examples, _, length, channels = batch.latents.shape
    device = batch.latents.device
    keys = batch.ids or tuple(map(str, batch.positions))
    return StepNoise(
        t=torch.full((examples,), t, device=device),
        noise=draw_noise(seed, keys, length, channels, purpose).to(device),
        drop_masks={},
        span=torch.ones(examples, length, dtype=torch.bool, device=device),
    )


def _is_fixed(training: Training) -> bool:
    """Whether the reference never moves and nothing but its errors is needed."""
    return training.objective.needs <= {"reference"} and isinstance(
        training.reference, AdapterOff | FrozenCopy
    )


def mean_columns(rows: Sequence[Columns]) -> dict[str, float]:
    """The mean of every column over all passes, exact whatever their order.

    For pairs, `winner_error_ratio` is the winners' mean error under the policy over that under the reference.
    """
    names = list(rows[0])
    columns = {name: [value for row in rows for value in row[name]] for name in names}
    means: dict[str, Any] = {name: math.fsum(values) / len(values) for name, values in columns.items()}
    policy, reference = means.pop(POLICY, None), means.pop(REFERENCE, None)
    if reference:
        means["winner_error_ratio"] = policy / reference
    return means
