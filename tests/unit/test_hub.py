"""Published weights are found, or the reason why not is one line."""

from pathlib import Path

import pytest

from diffdpo.errors import DataError
from diffdpo.hub import Published, find_folder, find_weights, sha256_of
from diffdpo.models import MODELS

FREE = Published(name="Free", repo="somebody/free", license="CC-BY-4.0")
BOUND = Published(name="Bound", repo="somebody/bound", license="CC-BY-NC-4.0", noncommercial=True)


def test_a_file_and_the_folder_that_holds_it_are_the_same(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    by_file = find_weights(
        FREE, str(tmp_path / "model.safetensors"), "model.safetensors", accept_noncommercial=False
    )
    assert by_file == find_weights(FREE, str(tmp_path), "model.safetensors", accept_noncommercial=False)


def test_a_noncommercial_licence_has_to_be_accepted(tmp_path):
    (tmp_path / "w").write_bytes(b"weights")
    with pytest.raises(DataError, match=r"CC-BY-NC-4\.0.*accept_noncommercial=true"):
        find_weights(BOUND, str(tmp_path / "w"), "w", accept_noncommercial=False)
    assert find_weights(BOUND, str(tmp_path / "w"), "w", accept_noncommercial=True).is_file()


@pytest.mark.parametrize("where", ["/no/such/file", "./no/such", "neither-path-nor-hub-id"])
def test_what_is_not_there_is_named(where):
    with pytest.raises(DataError, match=f"{where}: no such file or folder"):
        find_weights(FREE, where, "w", accept_noncommercial=False)


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file; expected Free here"):
        find_weights(FREE, str(tmp_path), "w", accept_noncommercial=False)


def test_the_licence_is_shown_before_the_hub_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"somebody/free/w could not be fetched .* give its path instead"):
        find_weights(FREE, "", "w", accept_noncommercial=False)
    assert "licence: CC-BY-4.0" in capsys.readouterr().err


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")
    assert sha256_of(tmp_path / "w") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that cannot be reached, and the folder of what was fetched from it before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_folder_is_that_of_the_path_or_of_the_hub(hub, tmp_path):
    (tmp_path / "here/weights").mkdir(parents=True)
    assert find_folder(FREE, "here/weights") == Path("here/weights")
    assert find_folder(FREE, "/no/such/folder") == Path("/no/such/folder")
    snapshot = hub / "models--somebody--free/snapshots/abc"
    (snapshot / "base").mkdir(parents=True)
    (hub / "models--somebody--free/refs").mkdir()
    (hub / "models--somebody--free/refs/main").write_text("abc")
    assert find_folder(FREE, "somebody/free") == snapshot
    assert find_folder(FREE, "somebody/free/base", ["vae"]) == snapshot / "base"


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("ace_step", "ACE-Step/acestep-v15-base"),
        ("ace_step", "checkpoints/acestep-v15-base"),
        ("ace_step", "ACE-Step/Ace-Step1.5/acestep-v15-turbo"),
        ("stable_audio_3", "stabilityai/stable-audio-3-medium-base"),
        ("stable_audio_open", "stabilityai/stable-audio-open-1.0"),
    ],
)
def test_without_the_hub_the_answer_is_one_line(hub, name, checkpoint):
    with pytest.raises(DataError) as error:
        MODELS[name](checkpoint=checkpoint).load()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(checkpoint)
    assert "could not be fetched" in message
    assert "give its path" in message
