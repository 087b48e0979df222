"""Files that hold no weights, or are not damaged: one line that says what the file is, without terminal escapes."""

import argparse
import json
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffdpo.codecs.oobleck import torchscript
from diffdpo.encoders.audiobox import load_audiobox
from diffdpo.encoders.beats import load_beats
from diffdpo.encoders.mulan_style import towers
from diffdpo.encoders.muq import load_muq
from diffdpo.encoders.songeval import load_head
from diffdpo.encoders.style import load_style
from diffdpo.errors import CheckpointError, UserError, plain, reason
from diffdpo.models.adapters import ADAPTER, read_adapter
from diffdpo.models.checkpoints import load_saved
from diffdpo.models.diffrhythm.checkpoints import read_network
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.weight_files import WEIGHTS, read_pickle, read_tensors

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 2221933123\n"
)
FOREIGN = {
    "pointer": (POINTER.encode(), "a Git LFS pointer, not weights: git lfs pull"),
    "page": (b"<!DOCTYPE html>\n<html><title>404</title>", "a web page, not weights"),
    "text": ("Stimmen, größer als Akkorde\n".encode() * 4, "a text file, not weights"),
    "page without a type": (b"  <HTML><body>Sign in</body></html>", "a web page, not weights"),
    "empty": (b"", "empty"),
}
DAMAGED = {
    "cut archive": b"PK\x03\x04" + bytes(60),
    "pickle": b"\x80\x02}q\x00.",
    "zeros": bytes(100),
}
STATE = {"transformer.proj_out.weight": torch.arange(512.0).view(8, 64)}


def read_bundle_network(path):
    (path.parent / "config.json").write_text("{}")
    return load_saved(DiffRhythmTransformer, path.parent)


def read_bundle_style(path):
    (path.parent / "style").mkdir(exist_ok=True)
    (path.parent / "style" / "config.json").write_text(json.dumps({"thirds": {}}))
    path.rename(path.parent / "style" / WEIGHTS)
    return load_style(path.parent)


READERS = {
    "published pickle": ("cfm_model.pt", lambda path: read_network(path, release="v1.2-base")),
    "published tensors": ("model.safetensors", lambda path: read_network(path, release="v1.2-base")),
    "network": (WEIGHTS, read_bundle_network),
    "adapter": (ADAPTER, lambda path: read_adapter(path.parent)),
    "vae": ("vae_model.pt", torchscript),
    "beats": ("beats.safetensors", lambda path: load_beats(path.parent)),
    "styles of the tiny model": (WEIGHTS, read_bundle_style),
    "muq": ("model.safetensors", load_muq),
    "songeval": ("model.safetensors", load_head),
    "audiobox": ("checkpoint.pt", load_audiobox),
    "mulan": ("pytorch_model.bin", lambda path: towers(path, path.parent / "no.json")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_holds_no_weights_is_named_for_what_it_is(tmp_path, reader, kind):
    name, read = READERS[reader]
    content, text = FOREIGN[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=text) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_one_line_without_terminal_escapes(tmp_path, reader, kind):
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(DAMAGED[kind])
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("read", [read_tensors, read_pickle])
def test_folders_and_names_that_do_not_exist_are_one_line(tmp_path, read):
    with pytest.raises(CheckpointError, match="a folder, expected a file"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "none.pt")


@pytest.mark.parametrize(
    "number",
    [
        np.float64(0.5),
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        np.uint8(1),
        np.arange(3),
        np.ones((2, 2)),
    ],
)
def test_numbers_of_numpy_beside_the_tensors_are_read(tmp_path, number):
    torch.save({"model_state_dict": STATE, "loss": number}, tmp_path / "cfm_model.pt")
    assert np.array_equal(read_pickle(tmp_path / "cfm_model.pt")["loss"], number)
    state = read_network(tmp_path / "cfm_model.pt", release="v1.2-base").state
    assert list(state) == ["proj_out.weight"]


def test_numbers_of_numpy_1_are_read(tmp_path):
    torch.save({"w": torch.ones(2), "loss": np.float64(0.5)}, tmp_path / "new.pt")
    with ZipFile(tmp_path / "new.pt") as source, ZipFile(tmp_path / "old.pt", "w") as target:
        for name in source.namelist():
            target.writestr(
                name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            )
    assert read_pickle(tmp_path / "old.pt")["loss"] == 0.5


def test_other_objects_are_named_as_the_reason(tmp_path):
    content = {"model_state_dict": STATE, "args": argparse.Namespace(lr=1e-4)}
    torch.save(content, tmp_path / "cfm_model.pt")
    with pytest.raises(CheckpointError, match=r"holds a argparse.Namespace beside its tensors") as caught:
        read_network(tmp_path / "cfm_model.pt", release="v1.2-base")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "ema_model._orig_mod.", "ema_model.module."],
)
def test_the_marks_of_wrappers_are_taken_off(tmp_path, prefix):
    names = {f"{prefix}transformer.proj_out.weight", "transformer._orig_mod.proj_out.weight"}
    for number, name in enumerate(names):
        path = tmp_path / f"{number}.pt"
        torch.save({"model_state_dict": {name: STATE["transformer.proj_out.weight"]}}, path)
        assert list(read_network(path, release="v1.2-base").state) == ["proj_out.weight"], name


def test_blocks_that_were_compiled_alone_are_read_as_they_were(tmp_path):
    save_file({"blocks.0._orig_mod.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    assert list(read_tensors(tmp_path / "x.safetensors")) == ["blocks.0.weight"]


def test_two_networks_under_different_marks_stay_refused(tmp_path):
    weight = STATE["transformer.proj_out.weight"]
    torch.save({"proj_out.weight": weight, "_orig_mod.proj_out.weight": weight}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match="more than one network"):
        read_network(tmp_path / "two.pt", release="v1.2-base")


def test_texts_of_libraries_lose_what_a_terminal_would_obey():
    assert plain("\x1b[1mload\x1b[0m \x1b[38;5;1mred\x07\n é 音") == "load red\n é 音"
    assert reason(ValueError("\x1b[31mfirst.\x1b[0m\nsecond")) == "first"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 1000))) == 160
