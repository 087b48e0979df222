"""Outputs of random songs for objectives, and one of every objective with every term it composes."""

from dataclasses import fields, replace

import torch

from diffdpo import flow
from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.terms.margin import AutoBeta, SoftLabel
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.objectives.terms.weights import Span, TimestepWeight
from diffdpo.types import FrameErrors, Outputs, Velocities

MEMBERS = {"song": 1, "pair": 2, "rated": 1, "group": 4}
FRAMES, CHANNELS = 7, 3
TERMS = {
    "timestep": TimestepWeight("clipped_elbo", clip=3.0),
    "span": Span(0.4),
    "soft_label": SoftLabel("mixture"),
    "safeguard": Safeguard(0.6),
    "anchor": Anchor(winner=0.3, reward=0.2, hinge=0.4, velocity=0.1),
    "auto_beta": AutoBeta(target_factor=0.2, fixed_steps=0),
}
"""A value of every term that is not its neutral one."""


def with_terms(name, *terms, **others):
    """An objective with these terms, or all of those it has a field for."""
    schema = OBJECTIVES[name]
    chosen = terms or [field.name for field in fields(schema) if field.name in TERMS]
    return schema(**{term: TERMS[term] for term in chosen}, **others)


def has(name, term):
    return term in {field.name for field in fields(OBJECTIVES[name])}


def random_outputs(objective, examples=6, seed=0, **changes):
    """Velocities of random songs of unequal length in float64, and all that follows from them."""
    generator = torch.Generator().manual_seed(seed)
    members = MEMBERS[objective.batch_kind]

    def normal(*shape):
        return torch.randn(examples, members, *shape, generator=generator, dtype=torch.float64)

    def uniform():
        return torch.rand(examples, generator=generator, dtype=torch.float64)

    frame = torch.arange(FRAMES)
    mask = frame < torch.randint(4, FRAMES + 1, (examples, members, 1), generator=generator)
    target = normal(FRAMES, CHANNELS)
    predicted = {name: target + 0.3 * normal(FRAMES, CHANNELS) for name in ("policy", "reference", "old")}
    predicted["policy"].requires_grad_()
    start = torch.randint(0, 4, (examples, 1), generator=generator)
    others = {
        "t": uniform(),
        "mask": mask,
        "score": normal(),
        "span": (frame >= start) & (frame < start + 2),
        "state": {"steps": 9, "margin_size": 0.05},
    }
    if objective.batch_kind == "pair":
        others["soft_label"] = uniform()
    return from_velocities(target, predicted, **(others | changes))


def from_velocities(target, predicted, mask, **others):
    """Outputs whose errors are those of the predictions."""
    per_frame = {name: (velocity - target).square().mean(-1) for name, velocity in predicted.items()}
    return Outputs(
        **{name: flow.masked_mean(errors, mask) for name, errors in per_frame.items()},
        mask=mask,
        frame_errors=FrameErrors(**per_frame),
        velocities=Velocities(target=target, **predicted),
        **others,
    )


def derived(outputs, **velocities):
    """The same outputs with other velocities, and the errors that follow."""
    predicted = {n: v for n, v in vars(outputs.velocities).items() if v is not None and n != "target"}
    target = velocities.pop("target", outputs.velocities.target)
    others = {name: getattr(outputs, name) for name in ("mask", "t", "score", "span", "soft_label", "state")}
    return from_velocities(target, predicted | velocities, **others)


def rows(outputs, index):
    """Some of the examples."""

    def take(value):
        if isinstance(value, torch.Tensor):
            return value[index]
        if isinstance(value, Velocities | FrameErrors):
            return type(value)(**{name: take(part) for name, part in vars(value).items()})
        return value

    return Outputs(**{name: take(value) for name, value in vars(outputs).items()})


def reverse(outputs):
    """Every pair with its winner and loser exchanged."""
    turned = {name: v.flip(1) for name, v in vars(outputs.velocities).items() if v is not None}
    return derived(replace(outputs, mask=outputs.mask.flip(1)), **turned)


def pair(policy_w, policy_l, reference_w, reference_l, **others):
    """One pair, its errors given as numbers."""
    policy = torch.tensor([[policy_w, policy_l]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[reference_w, reference_l]], dtype=torch.float64)
    return Outputs(policy=policy, reference=reference, **others)


def pull(objective, outputs):
    """The gradient of the first example's loss by its errors."""
    return torch.autograd.grad(objective(outputs).loss.sum(), outputs.policy)[0][0].tolist()
