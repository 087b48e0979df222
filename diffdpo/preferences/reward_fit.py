"""Fitting a reward head to votes: principal components, a penalty chosen on held-out prompts, an ensemble.

Features are many and votes few, so a utility is fitted in the leading principal components of the differences
between songs that were compared, and the penalty is the one under which prompts that were left out are predicted
best. Members of the ensemble are fitted to bootstrap samples of prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffdpo.checks import check_range
from diffdpo.preferences.bradley_terry import (
    PairColumn,
    bootstrap_counts,
    calibrate_temperature,
    group_folds,
    log_loss,
)
from diffdpo.preferences.calibration import fit_isotonic, fit_slopes
from diffdpo.preferences.reward_head import RewardHead
from diffdpo.preferences.ties import fit_davidson, fit_nu
from diffdpo.preferences.vote_design import ComponentVotes, VoteDesign, merge_votes

Basis = Float[np.ndarray, "feature component"]


class Members(NamedTuple):
    """Weights of the members of an ensemble on components."""

    linear: Float[np.ndarray, "member component"]
    inner: Float[np.ndarray, "member hidden component"]
    bias: Float[np.ndarray, "member hidden"]
    outer: Float[np.ndarray, "member hidden"]

    def __call__(self, rows: Float[np.ndarray, "row component"]) -> Float[np.ndarray, "member row"]:
        hidden = np.tanh(np.einsum("mhc,rc->mrh", self.inner, rows) + self.bias[:, None])
        return self.linear @ rows.T + np.einsum("mrh,mh->mr", hidden, self.outer)


MemberFit = Callable[["ComponentVotes", Float[np.ndarray, "member pair"], float], Members]
"""Fits members to votes on components, each with counts of its own, under a penalty."""


@dataclass(frozen=True)
class RewardFit:
    """How a reward head is fitted."""

    components: int = 64
    """Most principal components; 0: all features."""
    scale_power: float = 0.5
    """Power of its deviation that a component is divided by: 0 leaves all as they are, 1 makes all alike."""
    l2: list[float] = field(default_factory=lambda: [0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0])
    """Penalties that are tried; the best on held-out prompts is taken."""
    members: int = 16
    """Bootstrap samples of prompt groups, one member of the ensemble each."""
    folds: int = 5
    """Parts of the prompt groups; each is held out once to choose and to calibrate."""
    ties: Literal["half", "davidson"] = "half"
    """Whether a tie is half a win for each, or an outcome of its own."""
    reliability: bool = False
    """Whether votes of listeners who agree less with the others count less, and of those who answer the opposite
    the other way round."""
    calibration: Literal["temperature", "isotonic", "none"] = "temperature"
    limit: float = 4.0
    """Features are cut at so many standard deviations."""

    def __post_init__(self) -> None:
        check_range(self, "members", low=1, prefix="fit.")
        check_range(self, "folds", low=2, prefix="fit.")
        check_range(self, "components", low=0, prefix="fit.")
        check_range(self, "scale_power", low=0, high=1, prefix="fit.")
        check_range(self, "limit", above=0, prefix="fit.")
        if not self.l2 or not all(0 < value < np.inf for value in self.l2):
            raise ValueError(f"fit.l2 has to be one or more numbers above 0, got {self.l2}")


@dataclass(frozen=True)
class RewardNetwork:
    """The hidden layer beside the linear utility, trained with torch."""

    hidden: int = 0
    """Units; 0: the utility is linear."""
    steps: int = 300
    """Of full-batch Adam."""
    lr: float = 0.01

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=0, prefix="network.")
        check_range(self, "steps", low=1, prefix="network.")
        check_range(self, "lr", above=0, prefix="network.")


@dataclass(frozen=True, eq=False)
class FittedReward:
    """A head and how it was fitted."""

    head: RewardHead
    margins: PairColumn
    """Of each pair, by a fit that saw none of its prompt group; in units of the head."""
    losses: dict[str, float]
    """Mean log-loss on held-out prompt groups, by penalty."""
    l2: float
    nu: float
    slopes: dict[str, float]
    """By listener; {} where all count alike."""


def fit_reward(
    design: VoteDesign, cfg: RewardFit, *, seed: int = 0, fit_members: MemberFit | None = None
) -> FittedReward:
    """The head under which the votes are likely; by default linear, else what `fit_members` fits."""
    fit = fit_members or fit_linear
    head = _empty_head(design, cfg)
    x = head.standardise(design.rows)
    basis = principal_basis(x[design.first] - x[design.second], cfg.components, cfg.scale_power)
    data = ComponentVotes(x @ basis, design, np.ones(len(design.first)), 0.0)
    fold = group_folds(design.groups, cfg.folds, seed)
    losses, margins = _choose_penalty(data, cfg, fit, fold)
    l2 = min(losses, key=lambda value: losses[value])
    slopes: dict[str, float] = {}
    if cfg.reliability or cfg.ties == "davidson":
        if cfg.reliability:
            temperature = calibrate_temperature(margins[l2], design.targets)
            slopes = fit_slopes(margins[l2] / temperature, design.targets, list(design.raters))
        nu = fit_nu(margins[l2], design.ties, design.counts) if cfg.ties == "davidson" else 0.0
        factors = np.array([slopes.get(str(name), 1.0) for name in design.raters])
        data = ComponentVotes(data.rows, design, factors, nu)
        losses, margins = _choose_penalty(data, cfg, fit, fold)
        l2 = min(losses, key=lambda value: losses[value])
    rng = np.random.default_rng(seed)
    counts = np.stack([bootstrap_counts(design.groups, rng) for _ in range(cfg.members)])
    members = fit(data, counts * design.counts, l2)
    head = replace(
        head,
        linear=members.linear @ basis.T,
        inner=members.inner @ basis.T,
        bias=members.bias,
        outer=members.outer,
    )
    head = calibrate_head(head, margins[l2] * data.slopes, design, cfg.calibration)
    scale = head.in_units_of(design.rows)
    return FittedReward(
        scale,
        margins[l2] * (scale.temperature / head.temperature),
        {f"{value:g}": losses[value] for value in cfg.l2},
        l2,
        data.nu,
        slopes,
    )


def _empty_head(design: VoteDesign, cfg: RewardFit) -> RewardHead:
    """The scaling of features: deviations are those between songs that were compared."""
    differences = design.rows[design.first] - design.rows[design.second]
    scale = np.sqrt((differences**2).mean(0) / 2)
    floor = 1e-3 * max(float(np.median(scale)), 1e-9)
    size = design.rows.shape[1]
    return RewardHead(
        center=design.rows.mean(0),
        scale=np.maximum(scale, floor),
        linear=np.zeros((1, size)),
        inner=np.zeros((1, 0, size)),
        bias=np.zeros((1, 0)),
        outer=np.zeros((1, 0)),
        limit=cfg.limit,
    )


def principal_basis(
    differences: Float[np.ndarray, "pair feature"], components: int, scale_power: float
) -> Basis:
    """Directions along which compared songs differ most, each divided by a power of its deviation, and all by one
    number: the squared length of a difference is 2 on average, however many features there are.

    With `components` = 0 directions are the features.
    """
    if not components:
        return np.eye(differences.shape[1]) / np.sqrt(max((differences**2).sum(1).mean() / 2, 1e-30))
    covariance = differences.T @ differences / max(1, 2 * len(differences))
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-variances)[:components]
    order = order[variances[order] > 1e-9 * max(variances.max(), 1e-30)]
    basis = vectors[:, order] / np.sqrt(variances[order]) ** scale_power
    return basis / np.sqrt((variances[order] ** (1 - scale_power)).sum())


def _choose_penalty(
    data: ComponentVotes, cfg: RewardFit, fit: MemberFit, fold: Int[np.ndarray, " pair"]
) -> tuple[dict[float, float], dict[float, PairColumn]]:
    """The mean log-loss on held-out prompt groups and the margins there, by penalty.

    The loss is that of calibrated margins: a penalty that only shrinks all margins is no worse for it.
    """
    votes = data.votes
    losses, margins = {}, {}
    for l2 in cfg.l2:
        column = np.zeros(len(votes.first))
        for number in np.unique(fold):
            inside = fold == number
            part = replace(data, votes=votes.take(~inside), slopes=data.slopes[~inside])
            share = (~inside).mean()  # a penalty stands for all votes
            members = fit(part, part.votes.counts[None], l2 * share)
            utility = members(data.rows).mean(0)
            column[inside] = (utility[votes.first] - utility[votes.second])[inside]
        slope_margins = column * data.slopes
        temperature = calibrate_temperature(slope_margins, votes.targets)
        losses[l2] = float(
            np.average(log_loss(slope_margins / temperature, votes.targets), weights=votes.counts)
        )
        margins[l2] = column
    return losses, margins


def fit_linear(data: ComponentVotes, counts: Float[np.ndarray, "member pair"], l2: float) -> Members:
    """Members without a hidden layer."""
    weights = []
    for column in counts:
        pairs = merge_votes(data, column)
        weights.append(fit_davidson(pairs.differences, pairs.targets, pairs.counts, l2=l2, nu=data.nu))
    size, count = data.rows.shape[1], len(counts)
    return Members(np.stack(weights), np.zeros((count, 0, size)), np.zeros((count, 0)), np.zeros((count, 0)))


def calibrate_head(
    head: RewardHead,
    margins: PairColumn,
    design: VoteDesign,
    calibration: Literal["temperature", "isotonic", "none"],
) -> RewardHead:
    """The head with a calibration by margins of prompts that were held out."""
    if calibration == "none":
        return head
    head = replace(head, temperature=calibrate_temperature(margins, design.targets))
    if calibration == "temperature":
        return head
    return replace(head, knots=fit_isotonic(margins, design.targets, design.counts))
