"""Songs and scores by the actors of a Ray cluster: those of one process, whoever is killed meanwhile."""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.bundle import write_bundle
from support.clips import write_clips
from support.launch import command, environment

from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES
from diffdpo.data.scores import SCORES
from diffdpo.errors import ConfigError, DataError
from diffdpo.executors.ray_cluster import BatchActor, RayExecutor
from diffdpo.recipes import sample, score
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig

pytestmark = pytest.mark.slow
SONGS, PER_SONG, SECONDS = 6, 4, 10.0
CLIPS = SONGS * PER_SONG


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster of two cores, whose processes are children of this one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for attempt in range(3):  # on a busy machine Ray gives its servers too little time to start
            try:
                ray.init(
                    address="local",
                    num_cpus=2,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _node_ip_address="127.0.0.1",
                )
                break
            except Exception:
                ray.shutdown()
                if attempt == 2:
                    raise
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


def actors():
    """Processes of actors that work off batches."""
    processes = psutil.Process().children(recursive=True)
    return {process for process in processes if "MapWorker" in " ".join(cmdline(process))}


def cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def parts(folder):
    return len(tables.list_parts(folder / SCORES.folder))


def wait_for(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_command_and_a_killed_actor_lose_no_score(cluster, tmp_path):
    clips = write_clips(tmp_path / "clips", SONGS, PER_SONG, SECONDS)
    out, words = tmp_path / "scores", ["scorers=[production]", f"samples=[{clips}]"]
    words += [f"out={out}", "batch=1", "executor=ray", "executor.args.actors=2"]
    process = subprocess.Popen(
        command("score", *words, f"executor.args.address={cluster}"),
        env=environment(),
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: parts(out) >= 3 or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()[-2000:]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before, old = tables.read_rows(out, SCORES), actors()
    n_complete = len({row.sha256 for row in before})
    assert 3 <= n_complete < CLIPS

    killed = []

    def kill_one():
        n_parts = parts(out)
        wait_for(lambda: parts(out) > n_parts)
        victim = next(iter(actors() - old))
        victim.send_signal(signal.SIGKILL)
        killed.append((victim.pid, parts(out)))

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    cfg = ScoreRun(
        samples=[str(clips)], out=str(out), scorers=["production"], batch=1,
        executor=Choice("ray", {"actors": 2, "address": cluster}),
    )  # fmt: skip
    score.run(cfg)
    watcher.join()
    ((_, n_parts),) = killed
    assert n_parts < CLIPS, "it was killed after the end"
    local = score.run(
        ScoreRun(samples=[str(clips)], out=str(tmp_path / "local"), scorers=["production"], batch=1)
    )
    rows, expected = tables.read_rows(out, SCORES), tables.read_rows(local, SCORES)
    assert len({row.sha256 for row in expected}) == CLIPS
    assert rows == expected
    assert [row for row in rows if row in before] == sorted(before, key=rows.index)


def test_songs_are_those_of_one_process(cluster, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(f'{{"id": "p{i}", "text": "rock", "duration_s": {1 + i % 2}}}\n' for i in range(3))
    )
    cfg = SampleRun(
        out=str(tmp_path / "local"), prompts=str(tmp_path / "prompts.jsonl"), per_prompt=2,
        model=Choice("tiny", {"bundle": str(write_bundle(tmp_path / "bundle"))}),
        sampling=SamplingConfig(steps=2, batch=2),
    )  # fmt: skip
    local = sample.run(cfg)
    files = sorted(
        p.relative_to(local) for suffix in ("flac", "safetensors") for p in local.rglob(f"*.{suffix}")
    )
    assert len(files) == 12
    rest = shutil.copytree(local, tmp_path / "ray")
    missing = [path for path in files if not path.stem.startswith("p2")]
    for path in missing:
        (rest / path).unlink()
    times = {path: (rest / path).stat().st_mtime_ns for path in files if path not in missing}
    cfg.out, cfg.executor = str(rest), Choice("ray", {"actors": 1})
    sample.run(cfg)
    assert tables.read_rows(rest, SAMPLES) == tables.read_rows(local, SAMPLES)
    assert all((rest / path).read_bytes() == (local / path).read_bytes() for path in files)
    assert all((rest / path).stat().st_mtime_ns == time for path, time in times.items())


def doubling():
    """A factory that is pickled by value, since no actor can import this module."""

    @contextmanager
    def factory():
        def work(batch):
            for item in batch:
                if item == "exit":
                    os._exit(1)
                if item == "user":
                    raise ConfigError("weights are missing")
                if item == "disk":
                    raise OSError(errno.ENOSPC, "no space left")
            return [2 * item for item in batch]

        yield work

    return factory


def test_errors_of_workers_arrive_as_they_are(cluster):
    import ray

    with pytest.raises(ConfigError, match="weights are missing"):
        list(RayExecutor(actors=1)([["user"]], doubling()))
    actor = BatchActor(doubling(), [ray.put(["disk"]), ray.put([2])], str(Path.cwd()), 1)
    (full,), (fine,) = (actor({"number": [number]})["outcome"] for number in (0, 1))
    assert (type(full.error), full.error.errno) == (OSError, errno.ENOSPC)
    assert (fine.results, fine.error) == ([4], None)
    (astray,) = BatchActor(doubling(), [ray.put([2])], "/nowhere", 1)({"number": [0]})["outcome"]
    assert "/nowhere: a node of the Ray cluster cannot enter it" in str(astray.error)


def test_a_batch_that_ends_its_actors_does_not_stop_the_others(cluster):
    results = RayExecutor(actors=2, retries=1)([[1], ["exit"], [3]], doubling())
    assert dict(itertools.islice(results, 2)) == {0: [2], 2: [6]}
    with pytest.raises(DataError, match="1 of 3 batches ended their workers 2 times each"):
        next(results)


def test_more_actors_than_the_cluster_has_room_for_are_refused(cluster):
    with pytest.raises(ConfigError, match=r"5 actors of 0\.5 CPUs and 0 GPUs do not fit"):
        list(RayExecutor(actors=5)([[1]], doubling()))
    with pytest.raises(ConfigError, match=r"1 actors of 0\.5 CPUs and 1 GPUs do not fit"):
        list(RayExecutor(gpus_per_actor=1.0)([[1]], doubling()))
