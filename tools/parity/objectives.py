"""Compares objectives with numbers of the original implementations: losses, and gradients by relative norm.

A case file holds predictions, their targets (or the songs and noises from which targets follow), and the original's
loss and gradient. The name of the file names the objective.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diffdpo import flow
from diffdpo.errors import DataError
from diffdpo.objectives.awm import AWM
from diffdpo.objectives.dgpo import DGPO
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.dspo import DSPO
from diffdpo.objectives.kto import KTO, REFERENCE_POINT
from diffdpo.objectives.linear_dpo import LinearDPO
from diffdpo.objectives.links import build_link
from diffdpo.objectives.mapo import MaPO
from diffdpo.objectives.nft import NFT
from diffdpo.objectives.terms.margin import AutoBeta, SoftLabel
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.registry import Choice
from diffdpo.types import Objective, Outputs, Velocities
from tools.parity.diffrhythm import Case, read_tensors
from tools.parity.diffrhythm_runs import Tensors

SINGLE, DOUBLE = 1e-5, 1e-10
"""Relative tolerances for originals that compute in fp32 and in fp64."""


@dataclass(frozen=True)
class OriginalFamily:
    """A family of case files and the objective that must reproduce it."""

    objective: Callable[[Tensors, str], Objective]
    """The objective, from the case and the part of its name that the pattern's groups match."""
    members: int = 2
    """Songs an example: 2 for pairs, with all winners before all losers; else the size of a group."""
    single_precision: bool = False
    """Whether the original computes in fp32 even on fp64 input."""
    tolerance: float | None = None
    """A relative tolerance in place of SINGLE or DOUBLE."""
    fields: Callable[[Tensors], Mapping[str, Any]] = lambda case: {}
    """Fields of Outputs beyond predictions, targets and errors."""


def number(case: Tensors, key: str) -> float:
    """The input `key` of a case as a float."""
    return float(case[f"in.{key}"])


def times_and_scores(case: Tensors) -> dict[str, Tensor]:
    """The times and scores of a case, as fields of Outputs."""
    return {"t": case["in.sigma"].flatten(), "score": case["in.adv"][:, None]}


AWM_NAMES = {"Uniform": "uniform"}
ORIGINALS: dict[str, OriginalFamily] = {
    r"flow_grpo_flowdpo_.*": OriginalFamily(
        lambda case, _: DPO(beta=number(case, "beta")), single_precision=True
    ),
    r"tangoflux_crpo_.*": OriginalFamily(
        lambda case, _: DPO(beta=number(case, "beta"), anchor=Anchor(winner=1.0)), single_precision=True
    ),
    r"salesforce_dpo_.*": OriginalFamily(lambda case, _: DPO(beta=number(case, "beta"))),
    r"diffusers_dpo_(sigmoid|hinge|ipo)_.*": OriginalFamily(
        lambda case, link: DPO(beta=2 * number(case, "beta"), link=Choice(link)), single_precision=True
    ),
    r"sdpo_diffusion-dpo_.*": OriginalFamily(
        lambda case, _: DPO(
            beta=number(case, "beta"), safeguard=Safeguard(number(case, "mu")) if case["in.mu"] >= 0 else None
        )
    ),
    r"sdpo_dmpo_.*": OriginalFamily(
        lambda case, _: DPO(
            beta=number(case, "beta"), link=Choice("dmpo"), safeguard=Safeguard(number(case, "mu"))
        )
    ),
    r"sdpo_dspo_mu[\d.]+_f\d\d": OriginalFamily(lambda case, _: DSPO(beta=number(case, "beta"))),
    r"linear_dpo_.*": OriginalFamily(
        lambda case, _: LinearDPO(beta=number(case, "beta"), floor=number(case, "eta"))
    ),
    r"mapo_.*": OriginalFamily(
        lambda case, _: MaPO(
            beta=number(case, "beta_mapo"), snr=number(case, "snr_value"), sharpness=number(case, "T")
        ),
        single_precision=True,
        tolerance=5e-4,  # differences of nearly equal likelihoods, times a thousand
    ),
    r"smpo_.*": OriginalFamily(
        lambda case, _: DPO(beta=number(case, "beta"), soft_label=SoftLabel("certainty_margin")),
        fields=lambda case: {
            "soft_label": torch.full((6,), round(number(case, "p"), 6), dtype=torch.float64)
        },
    ),
    r"diffusion_kto_(sigmoid|loss_averse|risk_seeking)_.*": OriginalFamily(
        lambda case, utility: KTO(beta=number(case, "beta"), utility=utility),  # type: ignore[arg-type]
        members=1,
        fields=lambda case: {
            "score": case["in.labels"][:, None].double() - 0.5,
            "state": {REFERENCE_POINT: float(case["out.kl"])},
        },
    ),
    r"diffusion_nft_.*": OriginalFamily(
        lambda case, _: NFT(
            beta=number(case, "nft_beta"),
            advantage_clip=number(case, "adv_clip"),
            kl=number(case, "kl_coef"),
        ),
        members=1,
        fields=times_and_scores,
    ),
    r"awm_(Uniform|t|t2|huber|ghuber)_.*": OriginalFamily(
        lambda case, name: AWM(
            likelihood=AWM_NAMES.get(name, name),  # type: ignore[arg-type]
            clip=number(case, "clip"),
            velocity_kl=0.0,
        ),
        members=1,
        fields=times_and_scores,
    ),
    r"dgpo_.*": OriginalFamily(
        lambda case, _: DGPO(beta=number(case, "beta")),
        members=4,
        fields=lambda case: {"score": case["in.adv"].reshape(-1, 4)},
    ),
}
TRL = {
    "sigmoid": "sigmoid", "robust": "robust", "hinge": "hinge", "ipo": "ipo", "bco_pair": "bco",
    "nca_pair": "nca", "apo_zero": "apo_zero", "apo_down": "apo_down", "exo_pair": "exo",
    "sppo_hard": "sppo", "discopop": "discopop",
}  # fmt: skip
"""The link by TRL's name. TRL's aot is missing: it sorts rewards in a batch, and our losses are per example."""


def dpo(folder: Path) -> list[Case]:
    """The cases of every file of a folder; files of objectives that this project lacks are not covered."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise DataError(f"{folder}: holds no *.safetensors")
    return [case for path in paths for case in check(path.stem, read_tensors(path))]


def check(name: str, case: Tensors) -> list[Case]:
    """The cases of one file."""
    if name.startswith("trl_"):
        link = TRL.get(name.removeprefix("trl_"))
        return check_link(name, link, case) if link else [Case(name, is_covered=False)]
    if name.startswith("sdpo_lambda_active"):
        return check_scale(name, case)
    if match := re.fullmatch(r"simpletuner_flowdpo_(masked_mean|mean|sum)_.*", name):
        return check_auto_beta(name, case, match[1])
    for pattern, family in ORIGINALS.items():
        if match := re.fullmatch(pattern, name):
            return check_objective(name, case, family, "".join(match.groups()))
    return [Case(name, is_covered=False)]


def check_objective(name: str, case: Tensors, family: OriginalFamily, variant: str) -> list[Case]:
    """The cases of an objective's loss and gradient."""
    if family.single_precision:
        case = {key: value.float() for key, value in case.items()}
    prediction = case["in.pred"].clone().requires_grad_()
    target = (
        case["in.target"]
        if "in.target" in case
        else flow.velocity(flat(case["in.x0"]), flat(case["in.noise"]))
    )
    networks = {"policy": "in.pred", "reference": "in.ref_pred", "old": "in.old_pred"}
    predictions = {actual: case[original] for actual, original in networks.items() if original in case} | {
        "policy": prediction
    }
    predictions.setdefault(
        "reference", case["in.pred"]
    )  # where the original has none, the objective's is switched off
    stacks = {
        key: members(flat(value), family.members) for key, value in {**predictions, "target": target}.items()
    }
    errors = {
        key: flow.frame_errors(stacks[key].flatten(0, 1), stacks["target"].flatten(0, 1))
        .mean(1)
        .unflatten(0, stacks[key].shape[:2])
        for key in predictions
    }
    outputs = Outputs(**errors, velocities=Velocities(**stacks), **family.fields(case))
    loss = family.objective(case, variant)(outputs).loss.mean()
    loss.backward()
    original = case["out.loss"] if "out.loss" in case else case["out.policy_loss"]
    exact = prediction.dtype == original.dtype == torch.float64
    tolerance = family.tolerance or (DOUBLE if exact else SINGLE)
    cases = [Case(f"{name} loss", relative(loss.detach(), original), tolerance)]
    if "out.grad_pred" in case:
        assert prediction.grad is not None
        cases.append(
            Case(f"{name} out.grad_pred", relative(prediction.grad, case["out.grad_pred"]), tolerance)
        )
    return cases


def check_link(name: str, link: str, case: Tensors) -> list[Case]:
    """The cases of a link, whose rewards in TRL are beta times differences of log-probabilities."""
    beta = number(case, "beta")
    logs = {key: case[f"in.{key}_logps"].double().requires_grad_() for key in ("chosen", "rejected")}
    ratios = {key: logs[key] - case[f"in.ref_{key}"].double() for key in logs}
    if link == "ipo":  # lengths: a mean a token in TRL, a mean an element in this project
        ratios = {key: value / case["in.n_tokens"].double() for key, value in ratios.items()}
    has_smoothing = link in ("robust", "exo")  # not sigmoid: stored there, but not applied
    args = {"smoothing": number(case, "label_smoothing")} if has_smoothing else {}
    loss = build_link(Choice(link, args))(beta * ratios["chosen"], beta * ratios["rejected"], 2 * beta)
    gradients = torch.autograd.grad(loss.mean(), list(logs.values()))
    return [
        Case(f"{name} out.per_pair", relative(loss.detach(), case["out.per_pair"]), SINGLE),
        *(
            Case(f"{name} out.grad_{key}", relative(gradient, case[f"out.grad_{key}"]), SINGLE)
            for key, gradient in zip(logs, gradients, strict=True)
        ),
    ]


def check_scale(name: str, case: Tensors) -> list[Case]:
    """The case of SDPO's lambda; the original has one for a batch, so the batch is flattened to a single pair."""
    winner, loser = (case["in.pred"] - case["in.target"]).double().flatten().chunk(2)
    scale = Safeguard(number(case, "mu")).scale(winner, loser)
    return [Case(f"{name} out.lam", relative(scale, case["out.lam"]), SINGLE)]


def check_auto_beta(name: str, case: Tensors, reduction: str) -> list[Case]:
    """The cases of SimpleTuner's beta from the size of margins, at the first step and after one of doubled margins.

    Both sides compute in fp32, since the margins are small differences of large sums.
    """
    mask = case["in.mask"].flatten(1).float()
    counts = {
        "masked_mean": mask.sum(1),
        "mean": mask.new_full((len(mask),), mask.shape[1]),
        "sum": mask.sum(1) ** 0,
    }

    def error(key: str) -> Tensor:
        squares = (case[key].float() - case["in.target"].float()).flatten(1) ** 2
        return ((squares * mask).sum(1) / counts[reduction]).unflatten(0, (2, -1)).T

    auto_beta = AutoBeta(target_factor=0.2, fixed_steps=0, decay=0.99, range=(1e-9, 1e9))
    objective = DPO(auto_beta=auto_beta)
    policy, reference = error("in.pred"), error("in.ref_pred")
    size = objective(Outputs(policy=policy, reference=reference, state={"margin_size": 1.0}))
    first = auto_beta.update({}, {"margin_size": float(size.metrics["margin_size"].mean())})
    second = auto_beta.update(first, {"margin_size": 2 * first["margin_size"]})
    loss = objective(Outputs(policy=policy, reference=reference, state=first)).loss.mean()
    betas = torch.tensor([auto_beta(objective.beta, state) for state in (first, second)])
    original = torch.stack([case["out.auto_beta_call1"], case["out.auto_beta_call2_margin_x2"]]).flatten()
    return [
        Case(f"{name} loss", relative(loss, case["out.loss"]), SINGLE),
        Case(f"{name} auto beta", relative(betas, original), SINGLE),
    ]


def flat(tensor: Tensor) -> flow.Latents:
    """Images or audio as latents with one frame axis and one channel."""
    return tensor.flatten(1)[..., None] if tensor.ndim != 3 or tensor.shape[-1] != 1 else tensor


def members(songs: flow.Latents, count: int) -> Tensor:
    """Songs as [example, member, frame, channel]; pairs come with all winners first, groups example by example."""
    if count == 2:
        return rearrange(songs, "(member example) f c -> example member f c", member=2)
    return rearrange(songs, "(example member) f c -> example member f c", member=count)


def relative(actual: Tensor, golden: Tensor) -> float:
    """‖ours - golden‖ / ‖golden‖."""
    return float((actual.double() - golden.double()).norm() / golden.double().norm())
