"""The passes of a micro-batch: the examples that go through the networks together.

The loss of a micro-batch is a mean over its examples, and an example does not see the others. So each pass runs
the reference and the policy forward, and its share of the mean backward, and frees its activations before the next.
Which examples share a pass moves no number; it decides how fast the step is and how much memory it needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffdpo.training.pass_plan import PassPlan, choose_plan
from diffdpo.training.row_scale import scale_rows
from diffdpo.training.run import Training
from diffdpo.training.split import accumulate_only, split_backward
from diffdpo.training.step import Standards, noise_keys, part_outputs
from diffdpo.training.step_noise import StepNoise
from diffdpo.training.step_rows import cut_rows
from diffdpo.types import Batch, LossOutput

PER_EXAMPLE = ("latents", "frames", "weight", "scale", "soft_label", "score", "span")
"""Tensors of a batch with an entry an example; those of `rows` and of `positions` are tuples."""
TUPLES = ("rows", "reference_rows", "plus_rows", "minus_rows", "positions", "ids", "visits", "axes")


def backward_passes(
    training: Training, batch: Batch, noise: StepNoise, objective_state: Mapping[str, float]
) -> LossOutput:
    """Add the gradient of a micro-batch, pass by pass.

    Gradients are reduced over processes with the last pass only. Under DeepSpeed the backward pass that ends a step
    is also its update.
    """
    accelerator, spec = training.accelerator, training.model.spec
    window = spec.max_frames if spec.window == "fixed" else 0
    plan = choose_plan(accelerator, training.cfg, batch.frames.tolist(), window)
    results = []
    for number, examples in enumerate(plan.passes):
        part, own_noise = select_examples(batch, noise, examples)
        with accumulate_only(accelerator, training.policy, active=number + 1 < len(plan.passes)):
            results.append(_backward(training, part, own_noise, objective_state, plan))
    return join_results(results, plan.passes)


def _backward(
    training: Training,
    batch: Batch,
    noise: StepNoise,
    objective_state: Mapping[str, float],
    plan: PassPlan,
) -> LossOutput:
    """One pass; the reference's errors are from the cache where it holds them."""
    model, policy, objective = training.model, training.policy, training.objective
    keys = () if training.cache is None else tuple(map(str, noise_keys(batch, training.cfg)))
    cached = None if training.cache is None else training.cache.lookup(keys, batch.latents.device)
    standards = Standards(reference=training.reference, old=training.old, cached=cached)
    if plan.is_split:
        values, result = split_backward(
            training.accelerator, model, policy, batch, objective, noise,
            standards=standards, objective_state=objective_state,
        )  # fmt: skip
    else:
        with training.accelerator.autocast():
            parts = cut_rows(model, batch, noise, is_single=plan.is_single)
            values = part_outputs(model, policy, batch, objective, noise, parts, standards)
        result = objective(replace(values, state=objective_state))
        training.accelerator.backward((result.loss * batch.weight).mean())
    if batch.scale is not None:
        scale_rows(policy, None)
    if training.cache is not None and cached is None and values.reference is not None:
        training.cache.store(keys, values.reference)
    return LossOutput(loss=result.loss.detach(), metrics=result.metrics)


def select_examples(batch: Batch, noise: StepNoise, examples: Sequence[int]) -> tuple[Batch, StepNoise]:
    """Some examples of a micro-batch and their randomness, cut to the longest song among them.

    Their weights are such that the means over the passes of a micro-batch add up to the mean over its examples.
    """
    index = torch.tensor(examples)
    length = int(batch.frames[index].max())
    tensors: dict[str, Any] = {name: getattr(batch, name) for name in PER_EXAMPLE}
    tensors = {name: value[index] for name, value in tensors.items() if value is not None}
    tensors["weight"] = tensors["weight"] * (len(examples) / len(batch.weight))
    tensors["latents"] = tensors["latents"][:, :, :length]
    if batch.span is not None:
        tensors["span"] = tensors["span"][:, :length]
    tuples = {name: getattr(batch, name) for name in TUPLES}
    tuples = {name: tuple(value[i] for i in examples) for name, value in tuples.items() if value}
    return replace(batch, **tensors, **tuples), noise.select(index, length)


def join_results(results: Sequence[LossOutput], passes: Sequence[Sequence[int]]) -> LossOutput:
    """Losses and metrics of all passes in the order of the micro-batch, without gradient."""
    examples = [example for group in passes for example in group]
    order = torch.tensor(sorted(range(len(examples)), key=examples.__getitem__))

    def join(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([value.detach() for value in values])[order]

    return LossOutput(
        loss=join([result.loss for result in results]),
        metrics={name: join([result.metrics[name] for result in results]) for name in results[0].metrics},
    )
