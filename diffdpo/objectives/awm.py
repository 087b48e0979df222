"""AWM: advantage-weighted matching, policy gradients on the forward process (Xue et al. 2025, arXiv 2509.25050)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.errors import ensure
from diffdpo.types import BatchKind, LossOutput, Need, Outputs, PerSong, Take, expect

TINY = 1e-10
LIKELIHOODS: dict[str, Callable[[PerSong, Float[Tensor, "example 1"]], PerSong]] = {
    "uniform": lambda error, t: -error,
    "t": lambda error, t: -t * error,
    "t2": lambda error, t: -(t**2) * error,
    "huber": lambda error, t: -t * ((error + TINY).sqrt() - TINY**0.5),
    "ghuber": lambda error, t: -t * ((error + TINY) ** 0.25 - TINY**0.25) / 0.25,
}
"""Surrogates of the log-likelihood of a song, from its velocity error at time t."""


@dataclass(frozen=True)
class AWM:
    """A clipped policy gradient: -min(ratio A, clip(ratio) A), ratio = likelihood now / when the song was sampled.

    A, the `score`, is the song's advantage over its prompt's others. With the clip and `velocity_kl` both off
    training collapses: pushing bad songs away has no lower bound unless the KL outweighs the largest |A|. The
    timestep's weight is part of `likelihood`, and `velocity_kl` is its anchor.
    """

    batch_kind: ClassVar[BatchKind] = "group"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "old", "velocities"})
    takes: ClassVar[frozenset[Take]] = frozenset()

    likelihood: Literal["uniform", "t", "t2", "huber", "ghuber"] = "uniform"
    clip: float = 1e-5
    velocity_kl: float = 0.1
    """Weight of the squared distance of the policy's velocities from the reference's."""

    def __post_init__(self) -> None:
        names = ", ".join(LIKELIHOODS)
        ensure(self.likelihood in LIKELIHOODS, f"likelihood must be one of {names}, got {self.likelihood!r}")
        check_range(self, "clip", above=0)
        check_range(self, "velocity_kl", low=0)

    def __call__(self, outputs: Outputs) -> LossOutput:
        velocities, advantage = expect(outputs.velocities), expect(outputs.score)
        t = expect(outputs.t)[:, None]
        likelihood = LIKELIHOODS[self.likelihood]
        change = likelihood(outputs.policy, t) - likelihood(expect(outputs.old), t).detach()
        ratio = change.exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        kl = flow.masked_square(velocities.policy - expect(velocities.reference), outputs.mask)
        metrics = {
            "error": outputs.policy.detach().mean(1),
            "ratio": ratio.detach().mean(1),
            "clipped": ((ratio - 1).abs() > self.clip).to(ratio.dtype).mean(1),
            "velocity_distance": kl.detach().mean(1),
        }
        return LossOutput(loss=(self.velocity_kl * kl - surrogate).mean(1), metrics=metrics)
