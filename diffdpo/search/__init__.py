"""Search: the best songs of a prompt by a reward, at a cost. Methods by name; other packages add theirs as entry
points of the group `diffdpo.methods`."""

from typing import Any

from diffdpo.registry import Table
from diffdpo.search.best_of_n import BestOfN
from diffdpo.search.particles import Particles

METHODS: Table[type[Any]] = Table("method", {"best_of_n": BestOfN, "particles": Particles})
