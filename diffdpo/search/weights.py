"""Weighted particles: how rewards become weights, and weights become copies.

Particles are rows; those of one run stand one after another, `[run x particle]`, and each run is a population of
its own. All that is remembered of a particle is in named tensors with a leading row axis, the state of the
sampler, so a copy takes everything along: its latents, the condition it is made from, its rewards so far. Weights
are logarithms in fp64: a strength of 100 overflows nothing. The target is p(song) exp(strength x reward(song)) up
to a constant.

Singhal et al. 2025 (FK steering, arXiv 2501.06848), Del Moral 2004.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffdpo.models.base import take
from diffdpo.sampling.trajectory import ResampledLatents, State

Potential = Literal["diff", "max", "add", "rt"]
RowValues = Float[Tensor, " row"]
LogWeights = Float[Tensor, "run particle"]
LOG_WEIGHT, LOG_MEAN = "particle.log_weight", "particle.log_mean"
REWARD, PEAK, TOTAL, PRODUCT = "particle.reward", "particle.peak", "particle.total", "particle.product"


def begin_weights(rows: int) -> State:
    """What is remembered of particles without a reward: equal weights."""
    return {
        LOG_WEIGHT: torch.zeros(rows, dtype=torch.float64),
        LOG_MEAN: torch.zeros(rows, dtype=torch.float64),
        REWARD: torch.zeros(rows, dtype=torch.float64),
        PEAK: torch.full((rows,), -torch.inf, dtype=torch.float64),
        TOTAL: torch.zeros(rows, dtype=torch.float64),
        PRODUCT: torch.zeros(rows, dtype=torch.float64),
    }


def weigh_particles(
    state: State, rewards: RowValues, potential: Potential, strength: float, *, last: bool = False
) -> State:
    """Multiply the weight of each particle by a potential of its new reward r, given those before.

    In logarithms, times the strength: `diff` r - r_before, `max` the largest r yet, `add` the sum of all r yet,
    `rt` r. The last potential is exp(strength x r) over the product of the earlier ones, whichever they were, so
    the potentials of a particle always multiply to the tilt of the target.
    """
    rewards = rewards.double()
    peak, total = torch.maximum(state[PEAK], rewards), state[TOTAL] + rewards
    exponent = {"diff": rewards - state[REWARD], "max": peak, "add": total, "rt": rewards}[potential]
    increment = strength * rewards - state[PRODUCT] if last else strength * exponent
    return state | {
        LOG_WEIGHT: state[LOG_WEIGHT] + increment,
        REWARD: rewards,
        PEAK: peak,
        TOTAL: total,
        PRODUCT: state[PRODUCT] + increment,
    }


def effective_size(log_weights: LogWeights) -> Float[Tensor, " run"]:
    """How many equally weighted particles are worth as much: 1 / sum of the squared shares (Kong 1992)."""
    return 1 / torch.softmax(log_weights, 1).square().sum(1)


def systematic_ancestors(
    log_weights: LogWeights, uniform: Float[Tensor, " run"]
) -> Int[Tensor, "run particle"]:
    """The particle that each place is a copy of, in rising order.

    One number in [0, 1) a run shifts a comb of as many teeth as there are particles along their shares: a particle
    of share w has floor(k w) or ceil(k w) copies, and k w on average (Kitagawa 1996).
    """
    edges = torch.softmax(log_weights, 1).cumsum(1)
    count = log_weights.shape[1]
    teeth = (torch.arange(count, dtype=torch.float64) + uniform.double()[:, None]) / count
    return torch.searchsorted(edges / edges[:, -1:], teeth, right=True).clamp(max=count - 1)


def resample_particles(
    x: ResampledLatents, state: State, uniform: Float[Tensor, " run"], share: float
) -> tuple[ResampledLatents, State]:
    """Copy heavy particles over light ones in each run whose effective size is below `share` of its particles.

    The weights of these runs are equal afterwards, and the logarithm of their mean is added to LOG_MEAN: the sum of
    that and of the logarithm of the mean weight at the end estimates the normalising constant without bias.
    """
    runs = len(uniform)
    weights = state[LOG_WEIGHT].unflatten(0, (runs, -1))
    count = weights.shape[1]
    uneven = effective_size(weights) < share * count
    if not uneven.any():
        return x, state
    ancestors = torch.where(uneven[:, None], systematic_ancestors(weights, uniform), torch.arange(count))
    index = (ancestors + count * torch.arange(runs)[:, None]).flatten()
    log_mean = torch.logsumexp(weights, 1) - torch.log(torch.tensor(count, dtype=torch.float64))
    rows = uneven.repeat_interleave(count)
    state = take(state, index)
    state[LOG_MEAN] = state[LOG_MEAN] + torch.where(rows, log_mean.repeat_interleave(count), 0)
    state[LOG_WEIGHT] = torch.where(rows, 0.0, state[LOG_WEIGHT])
    return x[index.to(x.device)], state


def log_constant(state: State, runs: int) -> Float[Tensor, " run"]:
    """The logarithm of each run's estimate of the normalising constant, the mean of exp(strength x reward)."""
    weights = state[LOG_WEIGHT].unflatten(0, (runs, -1))
    mean = torch.logsumexp(weights, 1) - torch.log(torch.tensor(weights.shape[1], dtype=torch.float64))
    return state[LOG_MEAN].unflatten(0, (runs, -1))[:, 0] + mean
