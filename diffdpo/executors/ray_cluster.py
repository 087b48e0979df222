"""The executor of a Ray cluster: actors on any machine, each with a model of its own, through `ray.data`.

Ray pickles batches, factory and results between processes of one user on one cluster; nothing comes from outside.
"""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from diffdpo.checks import check_range
from diffdpo.devices import DEVICE
from diffdpo.errors import ConfigError, DataError, UserError, reason
from diffdpo.executors.base import BatchWorker, WorkerFactory
from diffdpo.progress import log

EMBEDDED = ""
"""The address of a cluster that lives in this process's children and ends with it."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""No reports to Ray's makers, and no lines of its servers between ours; the user's own values hold."""


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Batches on the actors of a Ray cluster, each of which builds its worker once.

    All nodes need this package and the working directory on a file system that they share. A batch whose actor or
    node dies is worked off anew by another actor, up to `retries` times.
    """

    in_process: ClassVar[bool] = False

    address: str = EMBEDDED
    """Of a running cluster, `HOST:PORT`, or `auto` for that of `ray start` on this machine; by default a cluster of
    this machine's cores is started, and ended with the command."""
    actors: int = 0
    """Workers; 0: as many as the cluster has room for, at most one for each core, or as its GPUs allow."""
    cpus_per_actor: float = 0.5
    """What an actor reserves. Ray's own tasks need a core: the actors together leave at least one."""
    gpus_per_actor: float = 0.0
    """1 on machines with GPUs; .5 places two actors on each."""
    threads_per_actor: int = 0
    """Threads of torch in an actor; 0: as many as in this process. Last bits of sums depend on it."""
    retries: int = 3
    """How often a batch is begun anew after its actor died."""

    def __post_init__(self) -> None:
        check_range(self, "actors", "gpus_per_actor", "threads_per_actor", "retries", low=0)
        check_range(self, "cpus_per_actor", above=0)

    def __call__(
        self, batches: Sequence[Sequence[Any]], factory: WorkerFactory
    ) -> Iterator[tuple[int, list[Any]]]:
        """The number and the results of each batch. UserError for one that killed its actors again and again."""
        if not batches:
            return
        check_ray()
        threads = self.threads_per_actor or _torch_threads()
        with _cluster(self.address):
            count = self._actor_count(len(batches), threads)
            log(f"Ray: {len(batches)} batches on {count} {'actor' if count == 1 else 'actors'}")
            open_numbers = set(range(len(batches)))
            for outcome in self._outcomes(batches, factory, threads, count):
                if outcome.error is not None:
                    raise outcome.error
                open_numbers.discard(outcome.number)
                yield outcome.number, outcome.results
        if open_numbers:
            raise DataError(
                f"{len(open_numbers)} of {len(batches)} batches ended their workers {self.retries + 1} times each, "
                "perhaps for want of memory; the rest is finished: the same command tries them again, with fewer "
                "actors or smaller batches it may succeed"
            )

    def _outcomes(
        self, batches: Sequence[Sequence[Any]], factory: WorkerFactory, threads: int, count: int
    ) -> Iterator["Outcome"]:
        """The outcome of each batch that did not kill all its actors."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext, from_items

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a batch that cannot be worked off must not stop the others
        references = [ray.put(tuple(batch)) for batch in batches]
        numbers = [{"number": number} for number in range(len(batches))]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of the last two arguments; see pyproject.toml
            results = from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                BatchActor,
                fn_constructor_args=(factory, references, str(Path.cwd()), threads),
                batch_size=1,
                batch_format="numpy",
                compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
                num_cpus=self.cpus_per_actor,
                num_gpus=self.gpus_per_actor,
                runtime_env={"env_vars": _variables(threads)},
                max_restarts=-1,
                max_task_retries=self.retries,
            )
        for row in results.iter_rows():
            yield row["outcome"]

    def _actor_count(self, batches: int, threads: int) -> int:
        """How many actors there shall be. ConfigError if they do not fit into the cluster."""
        import ray

        resources = ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        room = max(1, int((cpus - 1) / self.cpus_per_actor + 1e-6))
        if self.gpus_per_actor:
            room = min(room, int(gpus / self.gpus_per_actor + 1e-6))
        if self.actors > room or room == 0:
            raise ConfigError(
                f"executor ray: {self.actors or 1} actors of {self.cpus_per_actor:g} CPUs and "
                f"{self.gpus_per_actor:g} GPUs do not fit into a cluster of {cpus:g} CPUs, one of which stays "
                f"free, and {gpus:g} GPUs; lower actors, cpus_per_actor or gpus_per_actor"
            )
        cores = room if self.gpus_per_actor else max(1, int(cpus) // threads)
        return min(self.actors or min(room, cores), batches)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a batch: results, or the error that ends the run."""

    number: int
    results: list[Any]
    error: Exception | None = None


class BatchActor:
    """What lives in an actor: a worker, built when its first batch arrives, in the driver's working directory."""

    def __init__(self, factory: WorkerFactory, references: list[Any], folder: str, threads: int) -> None:
        self.factory, self.references, self.folder, self.threads = factory, references, folder, threads
        self.stack = ExitStack()
        self.worker: BatchWorker | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Outcome]]:
        """The outcome of the batch whose number a row holds. Errors are values: Ray would try them again."""
        (number,) = (int(value) for value in rows["number"])
        try:
            outcome = Outcome(number, self._work(number))
        except (UserError, OSError, MemoryError) as error:
            outcome = Outcome(number, [], error)
        except Exception as error:  # of any module, perhaps one that the driver cannot unpickle
            outcome = Outcome(number, [], RuntimeError(f"a Ray actor: {type(error).__name__}: {error}"))
        return {"outcome": [outcome]}

    def _work(self, number: int) -> list[Any]:
        import ray

        if self.worker is None:
            self._enter_folder()
            if "torch" in sys.modules:  # else it reads the environment when it is imported
                sys.modules["torch"].set_num_threads(self.threads)
            self.worker = self.stack.enter_context(self.factory())
        return self.worker(ray.get(self.references[number]))

    def _enter_folder(self) -> None:
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise DataError(
                f"{self.folder}: a node of the Ray cluster cannot enter it ({error.strerror}); start the command "
                "in a folder that all nodes share"
            ) from None


def check_ray() -> None:
    """ConfigError unless Ray is installed."""
    try:
        metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise ConfigError("executor=ray needs Ray; install it with `pip install diffdpo[ray]`") from None


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _variables(threads: int) -> dict[str, str]:
    """The environment of actors."""
    names = ("HF_HOME", "HF_HUB_OFFLINE", "OMP_WAIT_POLICY", "PYTHONPATH")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    if name := os.environ.get(DEVICE):
        variables[DEVICE] = name.split(":")[0]  # Ray shows an actor its own GPU as number 0
    return {**variables, "OMP_NUM_THREADS": str(threads)}


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Be connected to a cluster: the one this process is connected to already, a running one, or a new one."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = (
        {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == EMBEDDED else {}
    )
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == EMBEDDED else {}),
        )
    except Exception as error:  # Ray raises bare ones, as where a busy machine starts its servers too slowly
        raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {reason(error)}") from None
    with _orderly_end():
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM ends the process through its exception handlers, so that Ray's processes end too.

    Ray's own handler prints a stack of C++ first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        log("stopped; the same command goes on from what is finished")
        raise SystemExit(128 + number)

    handler = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
