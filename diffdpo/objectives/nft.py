"""DiffusionNFT: online reinforcement on the forward process (Zheng et al. 2025, arXiv 2509.16117, alg. 1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.types import BatchKind, LossOutput, Need, Outputs, PerExample, PerSong, Take, expect


@dataclass(frozen=True)
class NFT:
    """Pull the policy's velocity towards good songs, and that of its mirror image towards bad ones.

    With v+ = beta v + (1 - beta) v_old and v- = (1 + beta) v_old - beta v, and r in [0, 1] the optimality of a
    song (½ is average), a song costs r |x+ - song|² + (1 - r) |x- - song|², where x+ and x- are the songs that
    v+ and v- point back to. Each square is divided by its own mean distance, detached, so that all noise levels
    weigh alike: a weight of the timestep would undo that. Only clean songs and their scores are needed: any solver,
    no trajectories, no guidance. `kl` is its anchor.
    """

    batch_kind: ClassVar[BatchKind] = "group"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "old", "velocities"})
    takes: ClassVar[frozenset[Take]] = frozenset()

    beta: float = 1.0
    """How much of the policy is in the mixture; 1 for one reward, 0.1 for several."""
    advantage_clip: float = 5.0
    """Advantages (scores) at which r reaches 0 and 1."""
    kl: float = 1e-4
    """Weight of the squared distance of the policy's velocity from the reference's."""

    def __post_init__(self) -> None:
        check_range(self, "beta", "advantage_clip", above=0)
        check_range(self, "kl", low=0)

    def __call__(self, outputs: Outputs) -> LossOutput:
        velocities, t, score = expect(outputs.velocities), expect(outputs.t), expect(outputs.score)
        old = expect(velocities.old).detach()
        positive = self.beta * velocities.policy + (1 - self.beta) * old
        negative = (1 + self.beta) * old - self.beta * velocities.policy
        costs = [self._distance(v - velocities.target, t, outputs) / self.beta for v in (positive, negative)]
        optimality = (score / self.advantage_clip).clamp(-1, 1) / 2 + 0.5
        policy = self.advantage_clip * (optimality * costs[0] + (1 - optimality) * costs[1])
        kl = flow.masked_square(velocities.policy - expect(velocities.reference), outputs.mask)
        metrics = {
            "error": outputs.policy.detach().mean(1),
            "positive": costs[0].detach().mean(1),
            "negative": costs[1].detach().mean(1),
            "velocity_distance": kl.detach().mean(1),
        }
        return LossOutput(loss=(policy + self.kl * kl).mean(1), metrics=metrics)

    @staticmethod
    def _distance(
        error: Float[Tensor, "example member frame channel"], t: PerExample, outputs: Outputs
    ) -> PerSong:
        """Mean square of t·error, the error of the estimated song, over its own mean size, detached."""
        song_error = error.to(torch.promote_types(error.dtype, torch.float32)) * t[:, None, None, None]
        size = flow.masked_mean(song_error.detach().abs().mean(-1), outputs.mask).clamp(min=1e-5)
        return flow.masked_mean((song_error**2).mean(-1), outputs.mask) / size
