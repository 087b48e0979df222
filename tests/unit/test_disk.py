"""A disk that is full while a library saves: the system's error, with the file, instead of the library's words."""

import errno
import os
import resource
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from support.launch import verb

from diffdpo import audio
from diffdpo.disk import DISK_ERRNOS, disk_errors, find_disk_error
from diffdpo.errors import DataError
from diffdpo.models.adapters import write_adapter
from diffdpo.models.checkpoints import save_network
from diffdpo.models.diffrhythm.checkpoints import load_network, save_published

STATE = {"proj_out.weight": torch.zeros(400, 400)}


def write_song(folder, seconds=20):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 44100)).astype(np.float32)
    with disk_errors(folder / "song.flac"), audio.writer(folder / "song.flac", 44100) as file:
        for _ in range(seconds):
            audio.extend(file, noise)


def save_training(folder):
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(400, 400))
    with disk_errors(folder):
        accelerator.save_state(str(folder / "state"))
    accelerator.free_memory()


WRITERS = {
    "adapter": lambda folder, network: write_adapter(STATE, {}, folder / "export"),
    "network": lambda folder, network: save_network(network, network.state_dict(), folder / "export"),
    "published pickle": lambda folder, network: save_published(STATE, folder / "cfm_model.pt"),
    "published safetensors": lambda folder, network: save_published(STATE, folder / "model.safetensors"),
    "song": lambda folder, network: write_song(folder),
    "state of a training": lambda folder, network: save_training(folder),
}


@contextmanager
def file_limit(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def network(bundle):
    return load_network(bundle / "network")


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_may_not_grow_is_the_systems_error(tmp_path, network, name):
    with file_limit(20_000), pytest.raises(OSError, match="too large") as caught:
        WRITERS[name](tmp_path, network)
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).startswith(str(tmp_path))
    assert not list(tmp_path.rglob(".probe*"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_the_systems_error(full_disk, network, name):
    with pytest.raises(OSError, match="No space left") as caught:
        WRITERS[name](full_disk, network)
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_is_one_line_of_the_command_line(full_disk, bundle, pairs):
    error = verb(
        "train", f"out={full_disk}/run", f"data.pairs={pairs}", f"model.args.bundle={bundle}", "train.steps=1",
        "train.global_batch=2", "train.per_device=2", "train.lora.rank=2", "train.trackers=[]", code=2,
    )  # fmt: skip
    assert error.endswith("no space left; free some and run the same command again, what is finished is kept")


@pytest.mark.parametrize("number", DISK_ERRNOS)
def test_the_systems_error_is_found_in_the_chain_and_in_messages(tmp_path, number):
    texts = (f"I/O error: {os.strerror(number)} (os error {number})", f"write failed: {os.strerror(number)}")
    errors = [SafetensorError(texts[0]), RuntimeError(texts[0]), RuntimeError(texts[1])]
    for kind in ("cause", "context"):
        outer = RuntimeError("file write failed")
        setattr(outer, f"__{kind}__", OSError(number, os.strerror(number)))
        errors.append(outer)
    for error in errors:
        seen = find_disk_error(error, tmp_path / "x.bin")
        assert seen is not None
        assert (seen.errno, seen.filename) == (number, str(tmp_path / "x.bin"))


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), OSError(errno.ENOENT, "no such file"), ValueError("x")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path / "x"):
        raise error
    assert caught.value is error
    with pytest.raises(DataError), disk_errors(tmp_path / "x"):
        raise DataError("the user's mistake")
    assert list(tmp_path.iterdir()) == []
