"""A reward server as people start it, and one that is killed and started again in the middle of a run."""

import signal
import socket
import subprocess
import threading
import time

import pytest
from support.clips import write_clips
from support.launch import command, environment, verb

from diffdpo.data import tables
from diffdpo.data.scores import SCORES
from diffdpo.recipes import score
from diffdpo.recipes.score import ScoreRun

pytestmark = pytest.mark.slow
CLIPS = 24


def serve(port):
    return subprocess.Popen(
        command("serve-scorer", "production", "--port", port), env=environment(), stderr=subprocess.PIPE
    )


def test_a_killed_server_costs_no_score(tmp_path):
    clips = write_clips(tmp_path / "clips", 6, 4, 2.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers, n_parts = [serve(port)], []
    out = tmp_path / "scores"

    def kill_and_restart():
        while len(tables.list_parts(out / SCORES.folder)) < 3:
            time.sleep(0.005)
        servers[0].send_signal(signal.SIGKILL)
        servers[0].communicate()
        servers.append(serve(port))
        n_parts.append(len(tables.list_parts(out / SCORES.folder)))

    watcher = threading.Thread(target=kill_and_restart, daemon=True)
    watcher.start()
    remote = {"name": "remote", "args": {"url": f"http://127.0.0.1:{port}", "scorer": "production"}}
    try:
        score.run(ScoreRun(samples=[str(clips)], out=str(out), scorers=[remote], batch=1))
    finally:
        watcher.join(60)
        for server in servers:
            server.send_signal(signal.SIGINT)
    errors = [server.communicate()[1].decode() for server in servers[1:]]
    assert 3 <= n_parts[0] < CLIPS, "it was killed after the end"
    local = score.run(
        ScoreRun(samples=[str(clips)], out=str(tmp_path / "local"), scorers=["production"], batch=1)
    )
    rows, expected = (
        {(row.sha256, row.scorer, row.axis): row.value for row in tables.read_rows(folder, SCORES)}
        for folder in (out, local)
    )
    assert len({sha256 for sha256, _, _ in expected}) == CLIPS
    assert rows == expected
    assert f"production 2 at http://127.0.0.1:{port}, without a token" in errors[0].replace("\n", " ")
    assert "Traceback" not in errors[0]


def test_a_misspelt_scorer_is_a_line():
    assert "Did you mean 'production'" in verb("serve-scorer", "producton", code=2)
    assert "port must be in [0, 65535]" in verb("serve-scorer", "production", "--port", "99999", code=2)
