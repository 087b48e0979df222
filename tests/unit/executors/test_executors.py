"""Where batches are worked off: what is refused before anything is loaded."""

from contextlib import contextmanager

import pytest
from support.launch import hide_package

from diffdpo import config
from diffdpo.errors import ConfigError
from diffdpo.executors import EXECUTORS
from diffdpo.executors.base import Executor
from diffdpo.executors.local import LocalExecutor
from diffdpo.executors.ray_cluster import RayExecutor
from diffdpo.parts import build_executor
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, check_alone_on


@pytest.mark.parametrize("name", EXECUTORS.entries)
def test_an_executor_works_off_nothing_without_a_worker(name):
    executor = build_executor(Choice(name))
    assert isinstance(executor, Executor)
    assert list(executor([], lambda: pytest.fail("no worker is needed"))) == []


def test_a_local_worker_lives_until_its_last_batch():
    events = []

    @contextmanager
    def factory():
        events.append("begin")
        yield lambda batch: [sum(batch)]
        events.append("end")

    results = LocalExecutor()([[1, 2], [3]], factory)
    assert next(results) == (0, [3])
    assert events == ["begin"]
    assert list(results) == [(1, [3])]
    assert events == ["begin", "end"]


def test_a_missing_ray_is_one_line(monkeypatch):
    hide_package(monkeypatch, "ray")
    with pytest.raises(ConfigError, match=r"needs Ray; install it with `pip install diffdpo\[ray\]`"):
        list(RayExecutor()([[1]], lambda: None))


def test_a_configuration_names_an_executor_and_its_arguments():
    words = ["samples=[a]", "out=b", "executor=ray", "executor.args.actors=3"]
    assert config.build_config(ScoreRun, None, words, "score").executor == Choice("ray", {"actors": 3})
    with pytest.raises(ConfigError, match="Did you mean 'actors'"):
        config.build_config(ScoreRun, None, [*words, "executor.args.actor=3"], "score")


def test_a_search_is_shared_by_a_launcher_only():
    with pytest.raises(ConfigError, match="executor=local"):
        config.build_config(
            SampleRun, None, ["out=a", "prompts=p", "search.budget=2", "executor=ray"], "sample"
        )


def test_two_processes_of_a_launcher_do_not_both_share_out_the_work():
    check_alone_on(Choice("local"), DistEnv(0, 2, lambda: None))
    check_alone_on(Choice("ray"), DistEnv(0, 1, lambda: None))
    with pytest.raises(ConfigError, match="start one process, not 2"):
        check_alone_on(Choice("ray"), DistEnv(0, 2, lambda: None))
