"""One run at a time writes into a folder; the lock of a process that was killed is free."""

import signal
import subprocess
import sys

import pytest

from diffdpo.errors import DataError
from diffdpo.locks import is_alone, lock_folder, lock_shard

HOLDER = """
import sys, time
from pathlib import Path
from diffdpo.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_it_was_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(DataError, match=f"{tmp_path}: another run is at work here"),
            lock_folder(tmp_path),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
    with lock_folder(tmp_path):
        pass


def test_a_run_that_ended_leaves_the_folder_free_even_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="of the run"), lock_folder(tmp_path):
        raise ValueError("of the run")
    with lock_folder(tmp_path):
        pass


def test_shards_work_side_by_side_but_not_twice_and_not_beside_a_whole_run(tmp_path):
    with lock_shard(tmp_path, 0, 2) as first:
        assert is_alone(tmp_path, 0, 2)
        first.close()  # the folder is open
        with lock_shard(tmp_path, 1, 2) as second:
            assert not is_alone(tmp_path, 1, 2)
            second.close()
            with pytest.raises(DataError, match="at work here"), lock_shard(tmp_path, 0, 2):
                pass
            with pytest.raises(DataError, match="at work here"), lock_folder(tmp_path):
                pass
        assert is_alone(tmp_path, 0, 2)
    with (
        lock_folder(tmp_path),
        pytest.raises(DataError, match="at work here"),
        lock_shard(tmp_path, 0, 2, wait_s=0.1),
    ):
        pass


def test_a_folder_that_is_held_alone_has_no_leftovers_of_killed_writes(tmp_path):
    leftovers = [tmp_path / ".manifest.json.71.partial", tmp_path / "latents" / ".a.safetensors.71.partial"]
    others = [
        tmp_path / "train" / ".config.yaml.71.partial",
        tmp_path / "train" / ".lock",
        tmp_path / "a.partial",
    ]
    for path in (*leftovers, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with lock_folder(tmp_path):
        assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in others)
