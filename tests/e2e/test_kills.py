"""A verb killed at a random moment loses only what was in progress; `make soak` does this by the hundred."""

import json
import random
import signal
import subprocess

import pytest
from support.launch import ROOT, command, environment, stop_while, verb

from diffdpo.data import tables
from diffdpo.data.scores import SCORES

pytestmark = pytest.mark.slow


def scores(folder):
    return {(row.sha256, row.axis): row.value for row in tables.read_rows(folder, SCORES)}


def test_a_killed_score_continues_with_the_songs_that_are_left(tmp_path, bundle):
    rows = [{"id": f"p{i}", "text": "rock", "duration_s": 3} for i in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    verb("sample", f"prompts={tmp_path / 'p.jsonl'}", f"out={tmp_path / 's'}", f"model.args.bundle={bundle}",
         "sampling.steps=1")  # fmt: skip
    words = ["score", f"samples=[{tmp_path / 's'}]", "scorers=[harmony,production]"]
    verb(*words, f"out={tmp_path / 'whole'}")
    count = random.Random(0).randint(1, 5)
    process = subprocess.Popen(
        command(*words, f"out={tmp_path / 'killed'}"), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    stop_while(process, lambda: len(list((tmp_path / "killed" / SCORES.folder).glob("part-*"))) >= count)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    finished = scores(tmp_path / "killed")
    assert 0 < len(finished) < len(scores(tmp_path / "whole"))
    verb(*words, f"out={tmp_path / 'killed'}")
    assert finished.items() <= scores(tmp_path / "killed").items()
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
