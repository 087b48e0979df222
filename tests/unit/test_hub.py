"""Published weights are found, or the reason why not is one line."""

import pytest

from diffdpo.errors import DataError
from diffdpo.hub import Published, find_weights, sha256_of

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
