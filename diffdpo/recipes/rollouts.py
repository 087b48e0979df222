"""The songs of a round and their scores, made while the round before is trained, with a bound on staleness."""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from diffdpo.checks import check_range
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES
from diffdpo.errors import ConfigError, DataError
from diffdpo.progress import log
from diffdpo.recipes.round_songs import sample_candidates, score_candidates
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv

if TYPE_CHECKING:
    from diffdpo.recipes.round import RoundRun

ROLLOUT_LOG = "rollout.log"


@dataclass(frozen=True)
class RolloutConfig:
    """How far songs may lag behind the policy that is trained on them."""

    max_staleness: int = 0
    """Rounds between the model that makes a round's songs and the model that is trained on them. With 0 they are
    the same, and a round's songs wait for the training before. With 1 they are made, in a process of their own,
    while the model before is trained. The lag does not depend on how long either takes: a run that is repeated, or
    stopped and continued, has the same songs."""

    def __post_init__(self) -> None:
        check_range(self, "max_staleness", low=0)

    def policy(self, number: int) -> int:
        """The round whose model makes the songs of a round; 0 is the model that the rounds begin with."""
        return max(0, number - 1 - self.max_staleness)


def roll_out(cfg: "RoundRun", model: Choice, number: int) -> Path:
    """The songs of a round by a model, scored: the folder of the candidates."""
    folder = Path(cfg.out) / f"round-{number}"
    seed = cfg.seed + 1000 * number  # other songs than the evaluation's, and than any other round's
    songs = sample_candidates(cfg, model, folder / "candidates", seed)
    score_candidates(cfg, songs)
    return songs


@dataclass(frozen=True, eq=False)
class RolloutQueue:
    """The rollouts of a run: those of later rounds in a process beside the training, one after another."""

    cfg: "RoundRun"
    pool: ProcessPoolExecutor | None
    futures: "dict[int, Future[Path]]" = field(default_factory=dict)

    def songs(self, number: int, models: Sequence[Choice]) -> Path:
        """The scored songs of a round, made now unless they are there; their rows say how stale they are.

        `models` are those of the rounds that are complete, the first model before them. DataError rather than
        songs of an older policy than the bound allows.
        """
        policy = self.cfg.rollouts.policy(number)
        folder = roll_out(self.cfg, models[policy], number)
        record_staleness(folder, number - 1 - policy, self.cfg.rollouts.max_staleness)
        return folder

    def begin(self, number: int, models: Sequence[Choice]) -> None:
        """Begin the rollouts of later rounds whose policy is among the models; training may follow."""
        if self.pool is None:
            return
        for later in range(number + 1, self.cfg.rounds + 1):
            policy = self.cfg.rollouts.policy(later)
            if later not in self.futures and policy < len(models):
                log(f"round {later}: songs of the model of round {policy} are made meanwhile")
                self.futures[later] = self.pool.submit(_roll_out_apart, self.cfg, models[policy], later)

    def wait(self) -> None:
        """Wait for the rollouts that were begun; the error of one that failed."""
        try:
            for future in self.futures.values():
                future.result()
        except BrokenProcessPool:
            raise DataError(
                f"{self.cfg.out}: the process that makes songs was ended from outside, perhaps for want of memory; "
                "the same command continues"
            ) from None


@contextmanager
def rollout_queue(cfg: "RoundRun", dist: DistEnv) -> Iterator[RolloutQueue]:
    """The rollouts of a run. ConfigError for a lag where several processes train together."""
    if not cfg.rollouts.max_staleness:
        yield RolloutQueue(cfg, None)
        return
    if dist.count > 1:
        raise ConfigError(
            "rollouts.max_staleness: songs are made beside one process that trains; start one process, or leave it "
            "at 0"
        )
    pool = ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent)
    try:
        yield RolloutQueue(cfg, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def record_staleness(folder: Path, rounds: int, limit: int) -> None:
    """Write into the row of each song of a folder how many rounds older its policy is than the one to be trained.

    DataError, and no training, where that is more than the limit.
    """
    if rounds > limit:
        raise DataError(f"{folder}: songs of a policy {rounds} rounds old, rollouts.max_staleness={limit}")
    rows = tables.read_rows(folder, SAMPLES)
    if any(row.staleness != rounds for row in rows):
        tables.replace(folder, SAMPLES, [replace(row, staleness=rounds) for row in rows])


def _roll_out_apart(cfg: "RoundRun", model: Choice, number: int) -> Path:
    """`roll_out` in a process of its own, whose lines go into a file: those of the training are on the terminal."""
    path = Path(cfg.out) / f"round-{number}" / ROLLOUT_LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, redirect_stderr(file):
        return roll_out(cfg, model, number)


def _end_with_parent() -> None:
    """End this process when the one that started it does, however that ends."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
