"""A thousand clips on a Ray cluster of two workers, one of which is killed in the middle; and SIGTERM."""

import signal
import subprocess
import threading
import time

import psutil
from support.clips import write_clips
from support.launch import command, environment

from diffdpo.data import tables
from diffdpo.data.scores import SCORES
from diffdpo.recipes import score
from diffdpo.recipes.score import ScoreRun
from diffdpo.registry import Choice

SONGS, PER_SONG, SECONDS = 100, 10, 10.0


def workers():
    """Processes of actors that work off batches."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if "MapWorker" in process.name() + " ".join(process.cmdline())]


def test_a_thousand_clips_are_scored_although_a_worker_dies(tmp_path):
    clips, out = write_clips(tmp_path / "clips", SONGS, PER_SONG, SECONDS), tmp_path / "ray"
    cfg = ScoreRun(
        samples=[str(clips)], out=str(out), scorers=["production"], batch=4,
        executor=Choice("ray", {"actors": 2}),
    )  # fmt: skip
    killed = []

    def kill_one():
        while len(tables.list_parts(out / SCORES.folder)) < 60:
            time.sleep(0.05)
        victim = workers()[0]
        victim.kill()
        killed.append(len(tables.list_parts(out / SCORES.folder)))

    watcher = threading.Thread(target=kill_one, daemon=True)
    watcher.start()
    score.run(cfg)
    watcher.join(60)
    assert 60 <= killed[0] < 240, "it was killed in the middle"
    local = score.run(
        ScoreRun(samples=[str(clips)], out=str(tmp_path / "local"), scorers=["production"], batch=4)
    )
    rows = tables.read_rows(out, SCORES)
    assert len({row.sha256 for row in rows}) == SONGS * PER_SONG
    assert rows == tables.read_rows(local, SCORES)


def test_sigterm_ends_the_command_and_its_cluster(tmp_path):
    clips, out = write_clips(tmp_path / "clips", 10, 10, SECONDS), tmp_path / "ray"
    words = ["scorers=[production]", f"samples=[{clips}]", f"out={out}", "batch=1", "executor=ray"]
    process = subprocess.Popen(command("score", *words), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(tables.list_parts(out / SCORES.folder)) < 3:
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cluster = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped; the same command goes on" in errors
    assert "SIGTERM received" not in errors
    _, living = psutil.wait_procs(cluster, timeout=60)
    assert living == []
