"""Particles of long songs: weighed at the borders of windows, where what has been made so far is complete sound.

Boundary SMC of LatticeSMC (2026, arXiv 2610.02774). The reward of a beginning need not be an estimate, so no
network evaluation is spent on one, and any solver will do: windows have noise of their own. The target is p(song)
exp(strength x reward(song)), whatever beginnings are worth: the last weight takes their part back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError
from diffdpo.randomness import draw_uniform
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.trajectory import State
from diffdpo.search.chunks import (
    Branch,
    Prefix,
    SlotRewards,
    begin_prefix,
    branch_prefix,
    check_chain,
    finish_prefixes,
    grow_prefixes,
    settle_copies,
)
from diffdpo.search.task import SearchSong, SearchTask, search_groups, song_groups
from diffdpo.search.weights import (
    LOG_WEIGHT,
    PRODUCT,
    begin_weights,
    effective_size,
    resample_particles,
    weigh_particles,
)


@dataclass(frozen=True)
class ChunkParticles:
    """Songs of several windows that grow side by side; after each window promising beginnings are copied over
    others by weight; the best song wins."""

    particles: int = 0
    """Songs of a group; 0: one group of as many as the budget allows. Groups follow one another."""
    strength: float = 4.0
    """Factor of the reward, which counts in standard deviations, in exp(strength x reward): 1 / alpha."""
    prefix_weight: float = 1.0
    """Factor of the rewards of beginnings, beta: how much a beginning decides before the song is complete."""
    share: float = 0.5
    """Copies are made when the effective number of particles is below this share of their number."""
    score_s: float = 20.0
    """Seconds at the end of each window that are decoded and scored; the reward of a beginning is the mean over its
    windows. 0: all of it, anew after each window."""

    def __post_init__(self) -> None:
        check_range(self, "particles", "strength", "prefix_weight", "score_s", low=0)
        check_range(self, "share", low=0, high=1)

    @property
    def joint(self) -> bool:
        """Whether another budget is another search, of which none contains the other."""
        return self.particles == 0

    def check(self, sampling: SamplingConfig, budget: float) -> None:
        """ConfigError for a budget that does not reach."""
        if budget < self.particles:
            raise ConfigError(
                f"search.method=chunk_particles: a group of {self.particles} is more than search.budget={budget:g} "
                "songs; raise it, or lower particles"
            )

    def __call__(self, task: SearchTask) -> list[SearchSong]:
        self.check(task.sampling, task.budget)
        return search_groups(self, task)

    def groups(self, task: SearchTask) -> list[range]:
        """See GroupedMethod."""
        return song_groups(task, self.particles or int(task.budget))

    def search_group(self, task: SearchTask, numbers: range) -> list[SearchSong]:
        """See GroupedMethod."""
        check_chain(task, "chunk_particles")
        state, sizes = begin_weights(len(numbers)), []

        def select(rewards: SlotRewards, prefixes: Mapping[int, Prefix], turn: int) -> Sequence[Branch]:
            nonlocal state
            values = torch.tensor([rewards[slot] for slot in numbers], dtype=torch.float64)
            uniform = draw_uniform(task.seed, [task.sample_id(numbers[0])], f"resample-window-{turn}")
            state, parents, size = self.weigh_prefixes(state, values, uniform)
            sizes.append(size)
            return settle_copies([numbers[place] for place in parents], numbers)

        population = grow_prefixes(
            task,
            {slot: begin_prefix(task, task.embed(slot), task.prompt.text) for slot in numbers},
            key=f"chunk-particles-{len(numbers)}-{numbers[0]}",
            score_s=self.score_s,
            select=select,
            branch=lambda prefix, entry, turn: branch_prefix(task, prefix, entry),
        )
        starts = len({prefix.lineage[0] for prefix in population.values()})
        share = {"group": numbers[0] // len(numbers), "unique_starts": starts, "effective": sizes}
        weights = (state[LOG_WEIGHT] - state[PRODUCT]).tolist()
        return finish_prefixes(
            task,
            population,
            {slot: share | {"log_weight": weight} for slot, weight in zip(numbers, weights, strict=True)},
        )

    def weigh_prefixes(
        self, state: State, rewards: Float[Tensor, " row"], uniform: Float[Tensor, " run"]
    ) -> tuple[State, list[int], float]:
        """The weights after new rewards of beginnings, the place that each place is a copy of, and the effective
        size before copies were made.

        Copies stand so that a particle that goes on keeps its place.
        """
        state = weigh_particles(state, self.prefix_weight * rewards, "diff", self.strength)
        size = float(effective_size(state[LOG_WEIGHT][None])[0])
        places = torch.arange(len(rewards))
        _, copies = resample_particles(
            torch.zeros(len(rewards), 1, 1), state | {"row": places}, uniform, self.share
        )
        row = copies.pop("row").tolist()
        parents = [entry.parent for entry in settle_copies(row, range(len(row)))]
        order = torch.tensor([row.index(parent) for parent in parents])
        return {name: tensor[order] for name, tensor in copies.items()}, parents, size

    def weigh_songs(self, state: State, rewards: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The log weights of complete songs by their rewards."""
        return weigh_particles(state, rewards, "diff", self.strength, last=True)[LOG_WEIGHT]
