"""One function chooses the device; nothing else in the package asks for CUDA."""

import ast
from pathlib import Path

import pytest
import torch
from support.launch import verb

from diffdpo.devices import DEVICE, choose_device, widest_float
from diffdpo.errors import ConfigError

PACKAGE = Path(__file__).parents[2] / "diffdpo"
MEASURE = ("devices.py", "recipes/gpu_parts.py")
"""Files that may ask for a GPU: the choice itself, and the command that checks one."""


def test_without_an_accelerator_auto_is_the_cpu(monkeypatch):
    monkeypatch.delenv(DEVICE, raising=False)
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device().type == choose_device("auto").type == best
    monkeypatch.setenv(DEVICE, "cpu")
    assert choose_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps:0", "cpu:1", "cuda:-1"])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match="device="):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(DEVICE, "")
    for words in (("--device", "cuda"), ("device=cuda",)):
        error = verb("train", f"out={tmp_path}/run", *words, code=2)
        assert error == "error: device=cuda: PyTorch sees no such device here; choose auto or cpu"


def test_the_device_is_no_part_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv(DEVICE, "")
    for words in (("--device", "cpu"), ("device=cpu",)):
        assert "\ndevice:" not in "\n" + verb("train", f"out={tmp_path}/run", *words, "--dry-run")
        assert choose_device() == torch.device("cpu")


def test_fp64_is_used_where_the_device_has_it():
    assert widest_float(torch.device("cpu")) == widest_float(torch.device("cuda")) == torch.float64
    assert widest_float(torch.device("mps")) == torch.float32


def test_nothing_else_asks_whether_there_is_a_gpu():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).as_posix() in MEASURE:
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        assert not [n for n in calls if ast.unparse(n).startswith(("torch.cuda", "torch.backends.mps"))], path


def test_training_and_losses_convert_to_no_fp64_on_the_device():
    """MPS has none. Times of samplers and metrics of audio live on the CPU."""
    for folder in ("training", "objectives", "flow.py", "models/base.py"):
        path = PACKAGE / folder
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                assert text != "torch.float64", file
                assert not text.endswith(".double"), file
