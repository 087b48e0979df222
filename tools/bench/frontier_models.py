"""Models of the frontier: every objective of the registry on the songs of one run, at a step of equal cost.

The run's own objective is DPO on pairs. Strengths are comparable where theory makes them so: the beta of KTO and
of Linear-DPO has no half in it, so it is half of the run's. AWM's penalty, with its clip off, is the one that
came near the optimum where that is known (docs/log.md); NFT is that of `tools/bench_objectives.py`. DSPO, but for
the weight of noise levels, and MaPO have their published strengths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.bench.aligned_models import AlignedModel

BETAS = (500.0, 1500.0)
"""Of DPO, besides that of the run."""
ELBO = {"timestep": {"weight": "clipped_elbo"}}
"""The weight of noise levels that the run has."""
SAFEGUARD = {"safeguard": {"mu": 0.5}}
OLD = {"kind": "ema", "decay": 0.5, "ramp": 0.001}
"""The policy that groups are compared with: it follows the trained one, at first closely."""

OBJECTIVE_ARGS: Mapping[str, Mapping[str, Any]] = {
    "flow_matching": ELBO,
    "linear_dpo": {"beta": 75.0, **ELBO, **SAFEGUARD},
    "dspo": ELBO,
    "mapo": {},
    "kto": {"beta": 75.0, **ELBO},
    "reward_weighted": {"temperature": 1.0, **ELBO},
    "nft": {"advantage_clip": 2.0},
    "awm": {"clip": 1e6, "velocity_kl": 3.0},
    "dgpo": {"beta": 150.0, **ELBO},
}
"""Arguments of each objective on songs. A slider is trained on prompts alone and belongs to no frontier."""
TRAIN: Mapping[str, Mapping[str, Any]] = {
    "flow_matching": {"train.train.global_batch": 20, "train.train.per_device": 20},
    "mapo": {"train.train.global_batch": 10, "train.train.per_device": 10},
    "kto": {"train.train.global_batch": 16, "train.train.per_device": 16},
    "reward_weighted": {"train.train.global_batch": 5, "train.train.per_device": 5},
    "nft": {"train.train.global_batch": 3, "train.train.per_device": 3, "train.train.old": OLD},
    "awm": {"train.train.global_batch": 3, "train.train.per_device": 3, "train.train.old": OLD},
    "dgpo": {"train.train.global_batch": 4, "train.train.per_device": 4},
}
"""Examples of a step that cost as much as eight pairs of DPO, 16 songs of four passes each: three of the policy,
gradient included, and one of the reference. Without a reference a song costs three, with an old policy five."""


def frontier_models(rounds: Sequence[int]) -> list[AlignedModel]:
    """DPO at other betas, every other objective, and more rounds of the run's recipe."""
    models = [
        AlignedModel(f"dpo beta {beta:g}", f"DPO, beta {beta:g}", {"train.objective.args.beta": beta})
        for beta in BETAS
    ]
    models += [
        AlignedModel(
            name,
            f"objective {name}",
            {
                "train.objective": {"name": name, "args": dict(args)},
                **TRAIN.get(name, {}),
            },
        )
        for name, args in OBJECTIVE_ARGS.items()
    ]
    return models + [
        AlignedModel(f"{count} rounds", f"{count} rounds of the run's recipe", {"rounds": count})
        for count in rounds
    ]
