"""A dry run of training on several processes: what each would do, and the command that launches them.

Nothing is launched and no weight is loaded; a table of pairs is read for their names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffdpo.checks import check_range
from diffdpo.data.datasets.pairs import pair_id, sorted_pairs
from diffdpo.data.datasets.stream import accumulation, index_at, micro_batches
from diffdpo.data.pairs import PAIRS
from diffdpo.errors import ConfigError, ensure
from diffdpo.parts import build_objective
from diffdpo.recipes.estimate import EstimateSettings, estimate
from diffdpo.recipes.train import TrainRun
from diffdpo.training.config import data_world

LaunchBackend = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
MAX_NAMES = 8
"""Names of examples that are printed for a process."""


@dataclass(frozen=True)
class LaunchPlan:
    """The processes of a training that is not launched yet."""

    ranks: int = 1
    per_node: int = 8
    """Processes on each machine."""
    backend: LaunchBackend = "ddp"
    offload: bool = False

    def __post_init__(self) -> None:
        check_range(self, "ranks", "per_node", low=1)
        ensure(
            self.ranks <= self.per_node or self.ranks % self.per_node == 0,
            f"{self.ranks} processes are no whole number of machines with {self.per_node} each; change --per-node",
        )
        self.settings()

    @property
    def nodes(self) -> int:
        """Machines."""
        return max(1, self.ranks // self.per_node)

    def settings(self, seconds: float = 0.0) -> EstimateSettings:
        """The machines as the estimate of memory takes them."""
        stage = int(self.backend.removeprefix("zero")) if self.backend.startswith("zero") else 0
        return EstimateSettings(
            seconds, self.ranks, stage, fsdp2=self.backend == "fsdp2", offload=self.offload
        )


def plan_launch(cfg: TrainRun, plan: LaunchPlan, source: str) -> Iterator[str]:
    """Lines of the plan, the memory last, since it takes longest. ConfigError for what the backend refuses."""
    from diffdpo.training.sharding import Deployment
    from diffdpo.training.strategy import check_strategy

    train, objective = cfg.train, build_objective(cfg.objective)
    groups = data_world(train, plan.ranks)
    rounds = accumulation(train.global_batch, train.per_device, groups)
    settings = plan.settings()
    strategy = Deployment(
        plan.ranks, settings.zero_stage, fsdp2=settings.fsdp2, offload=plan.offload
    ).strategy
    check_strategy(train, strategy, objective)
    shards = ", ".join(sorted(strategy.shards)) or "nothing"
    yield f"{strategy.title} on {plan.ranks} process(es), {plan.nodes} machine(s); sharded: {shards}"
    yield (
        f"a step has {train.global_batch} examples: {groups} process(es) x {train.per_device} x {rounds} "
        "micro-batch(es)"
    )
    if train.context_parallel > 1:
        yield f"each of these {groups} is a group of {train.context_parallel} processes that share their songs"
    names = _names(cfg, objective.batch_kind)
    for rank in range(plan.ranks):
        yield f"rank {rank}: {_first_step(cfg, plan, rank, names)}"
    yield f"launch: {launch_command(plan, source)}"
    memory = estimate(cfg, settings)
    yield f"memory of each device, an estimate for the longest songs: peak {memory.peak / 2**30:.3f} GiB"
    yield from memory.lines()


def _names(cfg: TrainRun, kind: str) -> list[str]:
    """Names of the training pairs in their order, where there are pairs already."""
    from diffdpo.training.validation_data import training_part

    if kind != "pair" or not (Path(cfg.data.pairs) / PAIRS.folder).is_dir():
        return []
    path = Path(cfg.data.pairs) / PAIRS.folder
    return [pair_id(row) for row in sorted_pairs(path, training_part(cfg.train.validation))]


def _first_step(cfg: TrainRun, plan: LaunchPlan, rank: int, names: list[str]) -> str:
    """The positions of a process in the first step by micro-batch, and the names of their examples."""
    from diffdpo.training.context_parallel import data_place

    place, world = data_place(cfg.train, rank, plan.ranks)
    groups = micro_batches(
        0, global_batch=cfg.train.global_batch, per_device=cfg.train.per_device, rank=place, world=world
    )
    text = "step 1, positions " + " | ".join(" ".join(map(str, group)) for group in groups)
    if not names:
        return text
    positions = [position for group in groups for position in group]
    own = [names[index_at(position, len(names), cfg.seed)] for position in positions[:MAX_NAMES]]
    return f"{text}: {', '.join(own)}{', …' if len(positions) > MAX_NAMES else ''}"


def launch_command(plan: LaunchPlan, source: str) -> str:
    """The command line that launches these processes, to be given on every machine.

    ConfigError for an offload that no preset has.
    """
    if plan.ranks == 1:
        return f"diffdpo train {source}"
    if plan.offload and plan.nodes > 1:
        raise ConfigError("--offload: there is no preset for several machines; copy one and set it in there")
    machines = "2x8" if plan.nodes > 1 else "8"
    name = f"gpu_{machines}_{plan.backend}{'_offload' if plan.offload else ''}"
    words = [f"--config_file configs/accelerate/{name}.yaml", f"--num_processes {plan.ranks}"]
    if plan.nodes > 1:
        words += [
            f"--num_machines {plan.nodes}", "--machine_rank $SLURM_NODEID", "--main_process_ip $MASTER_ADDR",
            "--main_process_port 29500",
        ]  # fmt: skip
    return f"accelerate launch {' '.join(words)} -m diffdpo train {source}"
