"""Search: the best songs of a prompt by a reward, at a cost. Methods by name; other packages add theirs as entry
points of the group `diffdpo.methods`."""

from typing import Any

from diffdpo.registry import Table
from diffdpo.search.best_of_n import BestOfNSearch
from diffdpo.search.chunk_particles import ChunkParticles
from diffdpo.search.optimised_noise import OptimisedNoise
from diffdpo.search.particles import Particles
from diffdpo.search.pruning import ChunkPruner
from diffdpo.search.tree import TreeSearch

METHODS: Table[type[Any]] = Table(
    "method",
    {
        "best_of_n": BestOfNSearch,
        "chunk_pruning": ChunkPruner,
        "tree": TreeSearch,
        "particles": Particles,
        "chunk_particles": ChunkParticles,
        "noise": OptimisedNoise,
    },
)
