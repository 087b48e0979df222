"""Objectives against numbers of the original implementations: losses, and gradients by relative norm.

A case file holds `in.pred`, `in.ref_pred`, `in.x0`, `in.noise` (winners first, then losers) and `out.loss`,
`out.grad_pred`. Which objective a file is about is told by its name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffdpo import flow
from diffdpo.errors import DataError
from diffdpo.evaluation.golden import Case, read_tensors
from diffdpo.losses.anchored_dpo import AnchoredDPO
from diffdpo.losses.dpo import DPO
from diffdpo.types import Objective, Outputs

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Known:
    """A family of case files and the objective that must reproduce it."""

    objective: Callable[[Tensors], Objective]
    tolerance: float = 1e-5
    """Relative. The originals below cast to fp32 whatever they are given."""


FAMILIES: dict[str, Known] = {
    r"flow_grpo_flowdpo_.*": Known(lambda case: DPO(beta=float(case["in.beta"]))),
    r"tangoflux_crpo_.*": Known(lambda case: AnchoredDPO(beta=float(case["in.beta"]), anchor=1.0)),
}


def dpo(folder: Path) -> list[Case]:
    """Every case file of a folder; those of objectives we do not have are named as not covered."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise DataError(f"{folder}: holds no *.safetensors")
    cases: list[Case] = []
    for path in paths:
        known = next((known for pattern, known in FAMILIES.items() if re.fullmatch(pattern, path.stem)), None)
        cases += check(path.stem, read_tensors(path), known) if known else [Case(path.stem, covered=False)]
    return cases


def check(name: str, case: Tensors, known: Known) -> list[Case]:
    """Loss and gradient of one file."""
    prediction = case["in.pred"].clone().requires_grad_()
    target = flow.velocity(flat(case["in.x0"]), flat(case["in.noise"]))
    outputs = Outputs(
        policy=errors(flat(prediction), target), reference=errors(flat(case["in.ref_pred"]), target)
    )
    loss = known.objective(case)(outputs).loss.mean()
    loss.backward()
    assert prediction.grad is not None
    return [
        Case(f"{name} out.loss", relative(loss.detach(), case["out.loss"]), known.tolerance),
        Case(f"{name} out.grad_pred", relative(prediction.grad, case["out.grad_pred"]), known.tolerance),
    ]


def flat(tensor: Tensor) -> flow.Latents:
    """Images and audio alike as one long frame axis."""
    return tensor.flatten(1)[..., None]


def errors(prediction: flow.Latents, target: flow.Latents) -> Float[Tensor, "example 2"]:
    """Mean squared error of every sample."""
    mask = torch.ones(prediction.shape[:2], dtype=torch.bool)
    return rearrange(
        flow.masked_error(prediction, target, mask), "(member example) -> example member", member=2
    )


def relative(ours: Tensor, golden: Tensor) -> float:
    """‖ours - golden‖ / ‖golden‖."""
    return float((ours.double() - golden.double()).norm() / golden.double().norm())
