"""The hidden layer of a reward head, trained with torch: all members of the ensemble at once, on all votes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.preferences.reward_fit import Members, RewardNetwork, fit_linear
from diffdpo.preferences.vote_design import ComponentVotes
from diffdpo.randomness import generator


@dataclass(frozen=True)
class NetworkFit:
    """Members with a hidden layer that starts at the fitted linear utility: the layer's own output begins at 0.

    The penalty of the linear weights holds for the weights of both layers.
    """

    network: RewardNetwork
    seed: int = 0

    def __call__(self, data: ComponentVotes, counts: Float[np.ndarray, "member pair"], l2: float) -> Members:
        members, size, hidden = len(counts), data.rows.shape[1], self.network.hidden
        x = torch.from_numpy(data.rows).float()
        rng = generator(self.seed, f"{members}x{size}", "reward-network")
        inner = torch.randn(members, hidden, size, generator=rng) / size**0.5
        parameters = [
            torch.from_numpy(fit_linear(data, counts, l2).linear).float(),
            inner,
            torch.randn(members, hidden, generator=rng),
            torch.zeros(members, hidden),
        ]
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.Adam(parameters, self.network.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.network.steps)
        batch = VoteTensors.of(data, counts)
        for _ in range(self.network.steps):
            optimizer.zero_grad()
            loss = batch.loss(utilities(x, parameters))
            penalty = torch.stack([(p**2).sum() for p in (parameters[0], parameters[1], parameters[3])])
            total = (loss + l2 / 2 * penalty.sum()) / batch.counts.sum()
            total.backward()
            optimizer.step()
            schedule.step()
        return Members(*(parameter.detach().numpy().astype(np.float64) for parameter in parameters))


@dataclass(frozen=True, eq=False)
class VoteTensors:
    """Votes as tensors."""

    first: Tensor
    second: Tensor
    targets: Tensor
    slopes: Tensor
    counts: Tensor
    nu: float

    @classmethod
    def of(cls, data: ComponentVotes, counts: Float[np.ndarray, "member pair"]) -> "VoteTensors":
        """The tensors of votes on components."""
        votes = data.votes
        return cls(
            torch.from_numpy(votes.first),
            torch.from_numpy(votes.second),
            torch.from_numpy(votes.targets).float(),
            torch.from_numpy(data.slopes).float(),
            torch.from_numpy(counts).float(),
            data.nu,
        )

    def loss(self, utility: Float[Tensor, "member row"]) -> Float[Tensor, ""]:
        """The sum over members of Davidson's loss, see `davidson_terms`."""
        margins = (utility[:, self.first] - utility[:, self.second]) * self.slopes
        size = margins.abs() / 2
        total = 1 + (-2 * size).exp() + self.nu * (-size).exp()
        return (self.counts * (size + total.log() - (self.targets - 0.5) * margins)).sum()


def utilities(rows: Float[Tensor, "row component"], parameters: list[Tensor]) -> Float[Tensor, "member row"]:
    """What every member makes of every row."""
    linear, inner, bias, outer = parameters
    hidden = torch.tanh(torch.einsum("mhc,rc->mhr", inner, rows) + bias[..., None])
    return linear @ rows.T + torch.einsum("mhr,mh->mr", hidden, outer)
