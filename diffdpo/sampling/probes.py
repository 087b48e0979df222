"""Directions and probes of two classes of songs, from the activations of a network's blocks.

A probe is a logistic regression on a part of a block's channels, called head. Songs are divided by the group of
their prompt into two halves: one gives the direction and its probes, the other the probes that watch it, and the
probes of either half are tested on the other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.errors import DataError

Features = Float[Tensor, "song time block channel"]
"""The mean over the frames of each song, at each of some times t, of what each block puts out."""
L2 = 1.0
"""Penalty on the weights of a probe, whose features have the standard deviation 1."""
NEWTON_STEPS = 30
MIN_SONGS = 2
"""Of each class in each half."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Probes:
    """A logistic regression for each head of each block, with its accuracy on songs that it has not seen."""

    weights: Float[Tensor, "block head part"]
    bias: Float[Tensor, "block head"]
    accuracy: Float[Tensor, "block head"]

    def probability(self, features: Float[Tensor, "row block channel"]) -> Float[Tensor, "row block head"]:
        """The probability of the first class, from features in standard deviations."""
        heads = self.bias.shape[1]
        parts = features.to(self.weights).unflatten(2, (heads, -1))
        return torch.sigmoid((parts * self.weights).sum(-1) + self.bias)


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureScale:
    """Mean and standard deviation of features at each of some times."""

    times: Float[Tensor, " time"]
    center: Float[Tensor, "time block channel"]
    scale: Float[Tensor, "time block channel"]

    def standardise(
        self, features: Float[Tensor, "row block channel"], t: Float[Tensor, " row"]
    ) -> Float[Tensor, "row block channel"]:
        """Features in standard deviations of those at the nearest time."""
        place = (t[:, None].double() - self.times.double()).abs().argmin(1)
        return (features - self.center[place].to(features)) / self.scale[place].to(features)


def feature_scale(features: Features, times: Sequence[float]) -> FeatureScale:
    """The scale of the features of some songs; that of what never changes is 1."""
    spread = features.std(0)
    return FeatureScale(
        times=torch.tensor(list(times), dtype=torch.float64),
        center=features.mean(0),
        scale=spread.where(spread > 1e-8, torch.ones_like(spread)),
    )


def half_mask(groups: Sequence[str], positive: Sequence[bool], seed: int = 0) -> Bool[Tensor, " song"]:
    """Which songs are in the first half: every other group, in an order drawn by seed, so that no group is in both.

    Groups with songs of the same classes are halved among themselves. DataError where a half lacks a class.
    """
    classes: dict[str, set[bool]] = {}
    for group, label in zip(groups, positive, strict=True):
        classes.setdefault(group, set()).add(label)

    def order(group: str) -> str:
        return hashlib.sha256(f"{seed}|{group}".encode()).hexdigest()

    first = {
        group
        for kinds in ({True}, {False}, {True, False})
        for group in sorted((g for g in classes if classes[g] == kinds), key=order)[::2]
    }
    mask = torch.tensor([group in first for group in groups])
    labels = torch.tensor(list(positive))
    counts = [int((half & side).sum()) for half in (mask, ~mask) for side in (labels, ~labels)]
    if min(counts) < MIN_SONGS:
        raise DataError(
            f"a half of the songs has {min(counts)} of one class, at least {MIN_SONGS} are needed; give songs of "
            "more prompts (songs of one prompt, or of one group, stay together)"
        )
    return mask


def mean_difference(
    features: Features, labels: Bool[Tensor, " song"], *, unit: bool
) -> Float[Tensor, "block channel"]:
    """The mean of the first class minus that of the second, over songs and times, block by block."""
    by_song = features.mean(1)
    difference = by_song[labels].mean(0) - by_song[~labels].mean(0)
    return difference / difference.norm(dim=1, keepdim=True).clamp(min=1e-12) if unit else difference


def fit_probes(
    train: Float[Tensor, "row block channel"],
    train_labels: Bool[Tensor, " row"],
    test: Float[Tensor, "test_row block channel"],
    test_labels: Bool[Tensor, " test_row"],
    heads: int,
) -> Probes:
    """Probes fitted to some rows of standardised features and tested on others; classes count equally."""
    blocks = [_fit_block(train[:, block], train_labels, heads) for block in range(train.shape[1])]
    weights, bias = (torch.stack(parts) for parts in zip(*blocks, strict=True))
    probes = Probes(weights=weights, bias=bias, accuracy=torch.zeros_like(bias))
    is_right = (probes.probability(test) > 0.5) == test_labels[:, None, None]
    accuracy = (is_right[test_labels].double().mean(0) + is_right[~test_labels].double().mean(0)) / 2
    return Probes(weights=weights, bias=bias, accuracy=accuracy)


def _fit_block(
    features: Float[Tensor, "row channel"], labels: Bool[Tensor, " row"], heads: int
) -> tuple[Float[Tensor, "head part"], Float[Tensor, " head"]]:
    """The probes of the heads of one block, all by Newton's method in the span of the rows.

    The best weights are a sum over rows, so that many channels cost no more than few songs.
    """
    rows = features.double().unflatten(1, (heads, -1)).transpose(0, 1)  # head row part
    count = torch.where(labels, labels.sum(), (~labels).sum()).double()
    sample_weight, target = len(labels) / (2 * count), labels.double()
    gram = rows @ rows.transpose(1, 2)
    coefficients = torch.zeros(heads, len(labels), dtype=torch.float64)
    bias = torch.zeros(heads, dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid((gram @ coefficients[..., None]).squeeze(-1) + bias[:, None])
        curvature = (sample_weight * p * (1 - p)).clamp(min=1e-6)
        # Newton's step, as a ridge regression of the working response.
        response = (gram @ coefficients[..., None]).squeeze(-1) + bias[:, None]
        response = response + sample_weight * (target - p) / curvature
        matrix = gram + L2 * torch.diag_embed(1 / curvature)
        solution = torch.linalg.solve(matrix, torch.stack([response, torch.ones_like(response)], -1))
        bias = solution[..., 0].sum(-1) / solution[..., 1].sum(-1)
        coefficients = solution[..., 0] - bias[:, None] * solution[..., 1]
    return (coefficients[:, None] @ rows).squeeze(1), bias


def soft_weights(accuracy: Float[Tensor, "block head"], power: float = 3.0) -> Float[Tensor, "block head"]:
    """((acc - min) / (max - min))^3 as in SMITIN (Koo et al. 2024): the best is 1, the worst 0.

    All are 1 where all are equal.
    """
    low, high = accuracy.min(), accuracy.max()
    return torch.ones_like(accuracy) if high == low else ((accuracy - low) / (high - low)) ** power
