"""Outputs of random songs for objectives, and one of every objective with every term it composes."""

from dataclasses import fields, replace

import torch

from diffdpo import flow
from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.terms.margin import AutoBeta, SoftLabel
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.objectives.terms.weights import Span, TimestepWeight
from diffdpo.types import FrameErrors, Outputs, Velocities

MEMBERS = {"song": 1, "pair": 2, "rated": 1, "contrast": 1, "group": 4}
CONTRAST = ("plus", "minus")
"""Velocities of the frozen network for other prompts: they have no errors."""
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


def with_terms(name, *terms, **values):
    """An objective with the terms named, or every term it has a field for; `values` are its other arguments."""
    schema = OBJECTIVES[name]
    term_names = terms or [field.name for field in fields(schema) if field.name in TERMS]
    return schema(**{term: TERMS[term] for term in term_names}, **values)


def has(name, term):
    return term in {field.name for field in fields(OBJECTIVES[name])}


def random_outputs(objective, examples=6, seed=0, **changes):
    """Outputs of random songs of unequal length in float64: velocities, and the errors that follow from them."""
    generator = torch.Generator().manual_seed(seed)
    members = MEMBERS[objective.batch_kind]

    def normal(*shape):
        return torch.randn(examples, members, *shape, generator=generator, dtype=torch.float64)

    def uniform():
        return torch.rand(examples, generator=generator, dtype=torch.float64)

    frame = torch.arange(FRAMES)
    mask = frame < torch.randint(4, FRAMES + 1, (examples, members, 1), generator=generator)
    target = normal(FRAMES, CHANNELS)
    names = ("policy", "reference", "old", *(CONTRAST if "contrast" in objective.needs else ()))
    velocities = {name: target + 0.3 * normal(FRAMES, CHANNELS) for name in names}
    velocities["policy"].requires_grad_()
    start = torch.randint(0, 4, (examples, 1), generator=generator)
    inputs = {
        "t": uniform(),
        "mask": mask,
        "score": normal(),
        "span": (frame >= start) & (frame < start + 2),
        "state": {"steps": 9, "margin_size": 0.05},
    }
    if objective.batch_kind == "pair":
        inputs["soft_label"] = uniform()
    if objective.batch_kind == "contrast":
        inputs["scale"] = 0.5 - uniform()
    return from_velocities(target, velocities, **(inputs | changes))


def from_velocities(target, velocities, mask, **inputs):
    """Outputs whose errors are those of the predictions."""
    per_frame = {
        name: (velocity - target).square().mean(-1)
        for name, velocity in velocities.items()
        if name not in CONTRAST
    }
    return Outputs(
        **{name: flow.masked_mean(errors, mask) for name, errors in per_frame.items()},
        mask=mask,
        frame_errors=FrameErrors(**per_frame),
        velocities=Velocities(target=target, **velocities),
        **inputs,
    )


def with_velocities(outputs, **velocities):
    """The outputs with some velocities replaced, and the errors that follow from them."""
    predictions = {n: v for n, v in vars(outputs.velocities).items() if v is not None and n != "target"}
    target = velocities.pop("target", outputs.velocities.target)
    names = ("mask", "t", "score", "span", "soft_label", "scale", "state")
    inputs = {name: getattr(outputs, name) for name in names}
    return from_velocities(target, predictions | velocities, **inputs)


def rows(outputs, index):
    """Outputs of the examples at `index` alone."""

    def take(value):
        if isinstance(value, torch.Tensor):
            return value[index]
        if isinstance(value, Velocities | FrameErrors):
            return type(value)(**{name: take(part) for name, part in vars(value).items()})
        return value

    return Outputs(**{name: take(value) for name, value in vars(outputs).items()})


def reverse(outputs):
    """Every pair with its winner and loser exchanged."""
    flips = {name: v.flip(1) for name, v in vars(outputs.velocities).items() if v is not None}
    return with_velocities(replace(outputs, mask=outputs.mask.flip(1)), **flips)


def pair(policy_w, policy_l, reference_w, reference_l, **inputs):
    """One pair, its errors given as numbers."""
    policy = torch.tensor([[policy_w, policy_l]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[reference_w, reference_l]], dtype=torch.float64)
    return Outputs(policy=policy, reference=reference, **inputs)


def pull(objective, outputs):
    """The gradient of the first example's loss by its errors."""
    return torch.autograd.grad(objective(outputs).loss.sum(), outputs.policy)[0][0].tolist()
