"""Checkpoints on disk: damage is named with the way out, copies are left alone, layouts must fit."""

import json
import os
import resource
import shutil
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from support.launch import verb

from diffdpo.errors import CheckpointError
from diffdpo.models.adapters import read_adapter
from diffdpo.runs import MANIFEST
from diffdpo.training.checkpoint import SIZES, latest_checkpoint, list_checkpoints
from diffdpo.training.layout import Layout, check_layout

pytestmark = pytest.mark.slow

STATE = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl")


def train(out, bundle, pairs, steps, code=0):
    return verb(
        "train", f"out={out}", f"data.pairs={pairs}", "model.name=tiny", f"model.args.bundle={bundle}",
        "train.global_batch=2", "train.per_device=2", "train.lora.rank=2", "train.trackers=[]", "train.ema=0.9",
        "train.save_every=1", "train.keep_checkpoints=2", f"train.steps={steps}", code=code,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, bundle, pairs):
    """A run of two steps, with a checkpoint of each."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(out, bundle, pairs, 2)
    return out


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def damage(path: Path, kind: str) -> None:
    if kind == "absent":
        path.unlink()
    elif kind == "zeros":  # as after a loss of power: the size is right
        path.write_bytes(bytes(path.stat().st_size))
    else:
        os.truncate(path, {"empty": 0, "short": 10, "cut": path.stat().st_size - 1}[kind])


FILES = (*(f"state/{name}" for name in STATE), MANIFEST, "export/pytorch_lora_weights.safetensors")
DAMAGES = [
    (name, kind)
    for name, kind in product(FILES, ("empty", "short", "cut", "zeros", "absent"))
    if (name, kind) not in {(MANIFEST, "cut"), (MANIFEST, "absent")}
    and not (kind == "zeros" and "export" in name)
]
"""A manifest without its last line end is whole; without its manifest a folder is what a killed save left."""


@pytest.mark.parametrize(("name", "kind"), DAMAGES)
def test_a_damaged_checkpoint_is_one_line_that_names_the_file_and_the_older_one(
    copy, bundle, pairs, name, kind
):
    newest = copy / "checkpoints" / "step-00000002"
    damage(newest / name, kind)
    error = train(copy, bundle, pairs, 3, code=2)
    assert error.startswith(f"error: {newest / name}: damaged (")
    assert error.endswith(f"delete the folder {newest} to go on from step-00000001")
    shutil.rmtree(newest)


def test_behind_the_damaged_checkpoint_the_run_goes_on_from_the_older_one(copy, bundle, pairs, run, tmp_path):
    damage(copy / "checkpoints" / "step-00000002" / "state" / "optimizer.bin", "empty")
    train(copy, bundle, pairs, 3, code=2)
    shutil.rmtree(copy / "checkpoints" / "step-00000002")
    train(copy, bundle, pairs, 3)
    train(whole := Path(shutil.copytree(run, tmp_path / "whole")), bundle, pairs, 3)
    exports = [out / "checkpoints" / "step-00000003" / "export" for out in (copy, whole)]
    first, second = (read_adapter(export)[0] for export in exports)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_whole_older_checkpoint_the_way_out_is_to_start_over(copy, bundle, pairs):
    for step in (1, 2):
        damage(copy / "checkpoints" / f"step-{step:08d}" / "state" / "model.safetensors", "short")
    error = train(copy, bundle, pairs, 3, code=2)
    assert error.endswith(f"delete the folder {copy / 'checkpoints' / 'step-00000002'} to start over")


def test_a_state_that_would_run_code_is_refused_before_it_is_opened(copy, bundle, pairs, tmp_path):
    class Trap:
        def __reduce__(self):  # not `print`, which Ray replaces
            return os.mkdir, (str(tmp_path / "sprung"),)

    newest = copy / "checkpoints" / "step-00000002"
    for name in STATE[1:]:
        torch.save(Trap(), newest / "state" / name)
        manifest = json.loads((newest / MANIFEST).read_text())
        manifest[SIZES][f"state/{name}"] = (newest / "state" / name).stat().st_size
        (newest / MANIFEST).write_text(json.dumps(manifest))
        error = train(copy, bundle, pairs, 3, code=2)
        assert (
            f"state/{STATE[1]}: damaged (holds a posix.mkdir beside its tensors" in error or name != STATE[1]
        )
    assert not (tmp_path / "sprung").exists()


def test_an_older_manifest_without_sizes_and_layout_still_resumes(copy, bundle, pairs):
    path = copy / "checkpoints" / "step-00000002" / MANIFEST
    manifest = json.loads(path.read_text())
    assert (manifest["world"], manifest["distributed"], manifest["zero_stage"]) == (1, "NO", 0)
    names = (SIZES, "world", "distributed", "zero_stage")
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key not in names}))
    train(copy, bundle, pairs, 3)


def test_copies_of_checkpoints_are_the_users(copy, bundle, pairs):
    folder = copy / "checkpoints"
    names = (
        "step-00000001-best",
        "step-best",
        "step-1",
        "step-000000009",
        "step-00000002.old",
        "my-step-00000007",
    )
    for name in names:
        shutil.copytree(folder / "step-00000002", folder / name)
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000001", "step-00000002"]
    train(copy, bundle, pairs, 4)
    trained = {"step-00000003", "step-00000004"}
    assert {path.name for path in folder.iterdir()} == {*names, *trained}


@pytest.mark.parametrize("step", [0, 7, 99_999_999, 100_000_000, 12_345_678_901])
def test_checkpoints_of_all_steps_are_counted_in_order(tmp_path, step):
    for number in (1, step, 3):
        folder = tmp_path / f"step-{number:08d}"
        folder.mkdir(exist_ok=True)
        (folder / MANIFEST).write_text("{}")
    (tmp_path / "step-99999999999999").mkdir()  # no manifest: what a killed save left
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == sorted({1, step, 3})
    assert latest_checkpoint(tmp_path) == tmp_path / f"step-{max(step, 3):08d}"
    assert latest_checkpoint(tmp_path / "none") is None


ONE, TWO, GPUS = (
    Layout(world=1, distributed="NO"),
    Layout(world=2, distributed="MULTI_CPU"),
    Layout(world=8, distributed="MULTI_GPU"),
)  # fmt: skip
PORTABLE = (ONE, TWO, GPUS)
FIXED = (
    *(
        Layout(world=n, distributed="DEEPSPEED", zero_stage=stage)
        for n, stage in ((1, 2), (2, 2), (2, 3), (2, 0))
    ),
    Layout(world=2, distributed="FSDP"),
)


@pytest.mark.parametrize(("writer", "reader"), list(product((*PORTABLE, *FIXED), repeat=2)))
def test_plain_processes_continue_each_other_and_all_else_only_itself(writer, reader):
    manifest = {"step": 3, **vars(writer)}
    if writer == reader or {writer, reader} <= set(PORTABLE):
        check_layout(Path("c"), manifest, reader)
    else:
        with pytest.raises(CheckpointError) as caught:
            check_layout(Path("c"), manifest, reader)
        assert str(caught.value) == (
            f"c: written with {writer.description}, this run has {reader.description}; "
            "launch it as before, or begin a run from its export"
        )


def test_layouts_are_named_as_people_name_them():
    assert Layout(world=2, distributed="DEEPSPEED", zero_stage=2).description == "ZeRO-2 on 2 processes"
    assert (ONE.description, TWO.description) == ("1 process", "2 processes")


def test_another_layout_is_told_before_anything_is_loaded(copy, bundle, pairs):
    """The files of the state are not even there."""
    newest = copy / "checkpoints" / "step-00000002"
    path = newest / MANIFEST
    layout = {"world": 2, "distributed": "DEEPSPEED", "zero_stage": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | layout))
    shutil.rmtree(newest / "state")
    error = train(copy, bundle, pairs, 3, code=2)
    assert error == (
        f"error: {newest}: written with ZeRO-2 on 2 processes, this run has 1 process; launch it as before, "
        "or begin a run from its export"
    )


@contextmanager
def file_limit(size: int):
    """No file of this process may grow beyond a size: the system's answer is that of a full disk, in its way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_cannot_be_written_is_the_systems_error_and_the_run_continues(copy, bundle, pairs):
    with file_limit(10_000):
        error = train(copy, bundle, pairs, 3, code=2)
    assert "larger than a file may be here" in error
    assert latest_checkpoint(copy / "checkpoints").name == "step-00000002"
    train(copy, bundle, pairs, 3)
    assert latest_checkpoint(copy / "checkpoints").name == "step-00000003"
