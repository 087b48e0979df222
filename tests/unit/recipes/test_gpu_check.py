"""The check of a GPU, tried on the CPU with tiny networks: every part is real, and what fails is a row."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from support.launch import verb

from diffdpo.errors import DataError
from diffdpo.recipes.gpu_check import CHECK_PARTS, CheckPart, check_equal, measure_parts, render_table
from diffdpo.recipes.gpu_numbers import relative_difference
from diffdpo.recipes.gpu_parts import NoMemoryError, check_room, failure_reason

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TRIED = ("numbers fp32", "step LoRA, 2 x 2,048, check")
"""One part of each of two kinds; the others run in the soak."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_check(monkeypatch):
    monkeypatch.delenv("DIFFDPO_DEVICE", raising=False)
    assert "no CUDA GPU" in verb("gpu-check", code=2)


def test_a_part_that_does_not_exist_is_named():
    assert "no part begins so; there are device, numbers fp32" in verb(
        "gpu-check", "--device", "cpu", "--part", "nothing", code=2
    )
    assert "minutes must be" in verb("gpu-check", "--device", "cpu", "--minutes", "-1", code=2)


def test_parts_run_and_are_written(tmp_path):
    words = [word for name in TRIED for word in ("--part", name)]
    table = verb("gpu-check", "--device", "cpu", "--small", "--minutes", 30, "--out", tmp_path, *words)
    rows = {row["name"]: row for row in json.loads((tmp_path / "gpu_check.json").read_text())["parts"]}
    assert {row["status"] for row in rows.values()} == {"ok"}, rows
    assert rows["numbers fp32"]["gradient_difference"] == 0  # it is the same processor
    for name in (name for name in rows if name.startswith("step")):
        row = rows[name]
        assert row["live_gib"] == pytest.approx(row["estimate_gib"], rel=0.05)
        assert row["pairs_per_s"] == pytest.approx(1 / row["seconds"])
        assert row["matmul_share"] > 0
    assert (tmp_path / "gpu_check.md").read_text() in table
    assert all(name in table for name in rows)


def test_what_takes_too_long_is_a_row_and_the_next_part_still_runs():
    slow = CheckPart("slow", "sampler", 0.001)
    wrong = CheckPart("wrong", "step", 120, {"length": 7})
    rows = measure_parts([slow, wrong], "cpu", small=True, budget_s=600)
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert "not done after" in rows[0]["reason"]
    assert rows[1]["reason"].startswith("IndexError")


def test_a_process_that_is_killed_is_a_row():
    def kill():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(children[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    (row,) = measure_parts([CheckPart("killed", "device", 120)], "cpu", small=True, budget_s=600)
    thread.join()
    assert (row["status"], row["reason"]) == ("failed", "the process ended with signal 9: out of memory?")


def test_parts_are_skipped_when_the_time_is_used_up():
    times = iter([0.0, 595.0, 596.0])
    rows = measure_parts(CHECK_PARTS[:2], "cpu", small=True, budget_s=600, clock=lambda: next(times))
    assert [row["status"] for row in rows] == ["skipped", "skipped"]
    table = render_table([{"name": part.name, **row} for part, row in zip(CHECK_PARTS, rows, strict=False)])
    assert table.count("skipped: no time was left") == 2


def test_a_step_is_skipped_where_it_would_not_fit():
    check_room(9.2, 10.0)
    with pytest.raises(NoMemoryError, match=r"needs 9.3 GiB by the estimate, 10.0 GiB are free"):
        check_room(9.3, 10.0)


def test_other_numbers_than_the_cpus_end_the_command(tmp_path):
    difference = relative_difference(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]))
    assert difference == 0.75
    values = {f"{name}_difference": difference for name in ("forward", "gradient", "sampler")}
    row = {"name": "numbers fp32", "status": "differs", "excess": ["forward"], **values}
    assert "above the bound: forward" in render_table([row])
    with pytest.raises(DataError, match="other numbers than the CPU in numbers fp32"):
        check_equal([row], tmp_path)
    check_equal([{**row, "status": "ok"}], tmp_path)


def test_running_out_of_memory_is_said_in_one_line():
    assert (
        failure_reason(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), CPU)
        == "out of memory"
    )
    assert failure_reason(RuntimeError("first\nsecond"), CPU) == "RuntimeError: first second"
