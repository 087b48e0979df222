"""Executors: where the batches of a verb are worked off. A new one is a file here and a line in EXECUTORS."""

from diffdpo.executors.base import Executor
from diffdpo.executors.local import LocalExecutor
from diffdpo.executors.ray_cluster import RayExecutor
from diffdpo.registry import Table

EXECUTORS: Table[type[Executor]] = Table("executor", {"local": LocalExecutor, "ray": RayExecutor})
