"""The worlds, objectives and orderings of tools/bench_toy.py; an addition is a line in SETTINGS or FAMILIES."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from diffdpo.objectives.awm import AWM
from diffdpo.objectives.dgpo import DGPO
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.dspo import DSPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.kto import KTO
from diffdpo.objectives.linear_dpo import LinearDPO
from diffdpo.objectives.nft import NFT
from diffdpo.objectives.reward_weighted import RWR
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.objectives.terms.weights import TimestepWeight
from diffdpo.registry import Choice
from diffdpo.types import Objective
from tools.bench.gaussian_world import Mixture, Reward, World

Build = Callable[[World, float], Objective]
"""An objective from a world and beta in nats."""


@dataclass(frozen=True)
class Setting:
    """A world, the share of its pairs with exchanged labels, and the number of pairs a step."""

    world: World
    flip_share: float = 0.0
    batch: int = 256


@dataclass(frozen=True)
class Family:
    """An objective up to its beta, the density of times in training, and the betas of comparisons."""

    build: Build
    density: Literal["uniform", "logit_normal"] = "uniform"
    soft: bool = False
    betas: tuple[float, ...] = (0.25, 0.5, 1, 2, 4)
    """Betas of comparisons, whose KL from the reference ranges from a few hundredths to about a nat."""


def world(weights: Any, means: Any, variances: Any, slope: Any, curvature: float = 0.0) -> World:
    reference = Mixture(
        weights=torch.tensor(weights), means=torch.tensor(means), variances=torch.tensor(variances)
    )
    return World(reference=reference, reward=Reward(slope=torch.tensor(slope), curvature=curvature))


def eight() -> World:
    """Four modes in eight dimensions; two dimensions matter much, two little, four not at all."""
    generator = torch.Generator().manual_seed(8)
    means = 1.2 * torch.randn(4, 8, generator=generator)
    slope = [0.9, -0.6, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0]
    return world([0.4, 0.3, 0.2, 0.1], means.tolist(), [0.2, 0.3, 0.4, 0.3], slope)


PLANE = world([0.5, 0.3, 0.2], [[-1.5, 0.0], [1.0, 1.5], [1.5, -1.5]], [0.25, 0.36, 0.16], [1.0, 0.5])
PEAK = world([0.4, 0.4, 0.2], [[-1.2, 1.2], [1.2, 0.9], [0.0, -1.6]], [0.3, 0.5, 0.25], [0.6, -0.9], 0.8)
SETTINGS = {
    "plane": Setting(PLANE),
    "noisy": Setting(PLANE, flip_share=0.2),
    "flipped": Setting(PLANE, flip_share=1.0),
    "peak": Setting(PEAK),
    "eight": Setting(eight()),
    "song": Setting(replace(PLANE, frames=16), batch=48),
}


def per_element(world: World, nats: float) -> float:
    """Beta of an objective on means over elements with the factor ½, from the beta in nats a frame (see World)."""
    return 2 * world.dim * math.sqrt(world.frames) * nats


def dpo_builder(winner: float = 0.0, reward: float = 0.0, mu: float | None = None, **terms: Any) -> Build:
    """Builder of flow-DPO; `winner` weighs an anchor on the error summed over dimensions, `mu` the safeguard."""

    def build(world: World, nats: float) -> Objective:
        return DPO(
            beta=per_element(world, nats),
            anchor=Anchor(winner=world.dim * winner, reward=reward),
            safeguard=None if mu is None else Safeguard(mu),
            **terms,
        )

    return build


ELBO: dict[str, Any] = {"timestep": TimestepWeight("clipped_elbo")}
FAMILIES: dict[str, Family] = {
    "sft": Family(lambda world, nats: FlowMatching()),
    "rwr": Family(lambda world, nats: RWR(temperature=nats)),
    "nft": Family(lambda world, nats: NFT(advantage_clip=1.5 * nats, kl=0.0)),
    "awm": Family(lambda world, nats: AWM(clip=1e6, velocity_kl=1.5 * nats)),
    "dgpo": Family(lambda world, nats: DGPO(beta=per_element(world, nats))),
    "kto": Family(lambda world, nats: KTO(beta=per_element(world, nats) / 2)),
    "linear": Family(lambda world, nats: LinearDPO(beta=per_element(world, nats) / 2)),
    "dspo": Family(lambda world, nats: DSPO(beta=nats)),
    "dpo": Family(dpo_builder(), betas=(1, 2)),
    "dpo-logit-normal": Family(dpo_builder(), density="logit_normal"),
    "dpo-theory": Family(lambda world, nats: dpo_builder(timestep=TimestepWeight("theory"))(world, nats)),
    "dpo-elbo": Family(dpo_builder(timestep=TimestepWeight("clipped_elbo", clip=99.0))),
    "dpo-clip5": Family(dpo_builder(**ELBO), betas=(1.2, 2, 3.5)),
    "dpo-clip5-ln": Family(dpo_builder(**ELBO), density="logit_normal"),
    "crpo.1": Family(dpo_builder(winner=0.1)),
    "crpo": Family(dpo_builder(winner=1.0), betas=(0.1, 0.4, 1)),
    "crpo.1-clip5": Family(dpo_builder(winner=0.1, **ELBO)),
    "anchored.05": Family(dpo_builder(reward=0.05, **ELBO), betas=(0.25, 0.8, 2)),
    "anchored.25": Family(dpo_builder(reward=0.25, **ELBO)),
    "sdpo.5": Family(dpo_builder(mu=0.5)),
    "sdpo.9": Family(dpo_builder(mu=0.9)),
    "guarded": Family(dpo_builder(mu=0.5, **ELBO), betas=(0.12, 0.5, 2)),
    "guarded-soft": Family(dpo_builder(mu=0.5, **ELBO), soft=True),
    "guarded-ln": Family(dpo_builder(mu=0.5, **ELBO), density="logit_normal", betas=(0.12, 0.5, 2)),
    "ipo": Family(dpo_builder(link=Choice("ipo"))),
    "bco-clip5": Family(dpo_builder(link=Choice("bco"), **ELBO)),
}
METHODS = (
    "rwr@1", "nft@1", "awm@2", "sft@1", "dpo@0.25", "dpo@1", "dpo@2", "dpo@5", "dpo-theory@1", "dpo-elbo@1",
    "dpo-elbo@2", "dpo-clip5@1", "crpo.1@1", "crpo@1", "sdpo.5@1", "sdpo.9@1", "guarded@0.5",
    "ipo@1", "linear@1", "kto@1", "dspo@1", "dgpo@1",
)  # fmt: skip
CHECK_METHODS = {
    "plane": (
        "rwr@1",
        "nft@1",
        "crpo@1",
        "sdpo.9@1",
        "guarded@0.5",
        "dpo@0.25",
        "dpo@1",
        "dpo@2",
        "dpo@5",
        "dpo-theory@1",
    ),
    "flipped": ("dpo@1",),
}
